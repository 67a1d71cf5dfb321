from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from clickmask.errors import InvalidRequest
from clickmask_adapters.settings import Settings, read_settings, variables
from clickmask_adapters.tools.label_studio import LabelStudioSettings


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKMASK_TRUSTED_NETWORKS", "10.0.0.0/8, fd00::/8,")
    monkeypatch.setenv("CLICKMASK_IMAGE_HOSTS", "minio:9000")
    monkeypatch.setenv("CLICKMASK_IMAGE_ROOTS", "/srv/a,/srv/b")
    settings = Settings()
    assert settings.trusted_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert settings.image_hosts == ("minio:9000",)
    assert settings.image_roots == (Path("/srv/a"), Path("/srv/b"))


def test_label_studio_is_named_as_its_own_backends_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://localhost:8080/")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "key")
    settings = Settings()
    assert settings.label_studio_url == "http://localhost:8080"
    assert settings.label_studio_api_key is not None
    assert settings.label_studio_api_key.get_secret_value() == "key"


def test_cvat_is_named_as_its_command_line_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAT_URL", "http://localhost:8080/")
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", "token")
    monkeypatch.setenv("CVAT_USERNAME", "annotator")
    settings = Settings()
    assert settings.cvat_url == "http://localhost:8080"
    assert settings.cvat_access_token is not None
    assert settings.cvat_access_token.get_secret_value() == "token"
    assert settings.cvat_username == "annotator"


SECRETS = "CLICKMASK_TOKEN LABEL_STUDIO_API_KEY CVAT_ACCESS_TOKEN CVAT_PASSWORD CVAT_WEBHOOK_SECRET".split()


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "hush-hush")
    assert "hush" not in repr(Settings())


@pytest.mark.parametrize("networks", ["10.0.0.1/8", "everyone", "0.0.0.0/33"])
def test_a_network_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, networks: str) -> None:
    monkeypatch.setenv("CLICKMASK_TRUSTED_NETWORKS", networks)
    with pytest.raises(ValidationError):
        Settings()


def test_the_fields_of_a_new_tool_are_read_without_a_line_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package from elsewhere that brings a tool brings its variables."""
    (tmp_path / "my_tool.py").write_text(
        "from pydantic import BaseModel, Field\n"
        "class MySettings(BaseModel):\n"
        '    my_url: str | None = Field(default=None, validation_alias="MY_URL")\n'
        "    my_candidates: bool = False\n"
        "SETTINGS = MySettings\n"
        "def create(home): ...\n"
    )
    installed = tmp_path / "my_tool-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my_tool\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[clickmask_adapters.tools]\nmine = my_tool\n")
    program = (
        "import my_tool\nfrom clickmask_adapters.settings import Settings\n"
        "own = Settings().of(my_tool.MySettings)\nprint(own.my_url, own.my_candidates, own.min_iou)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "MY_URL": "http://mine",
        "CLICKMASK_MY_CANDIDATES": "1",
        "CLICKMASK_MIN_IOU": "0.9",
    }
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["http://mine", "True", "0.9"]


def test_fields_that_no_tool_brings_are_a_mistake() -> None:
    class Others(BaseModel):
        others_url: str | None = None

    with pytest.raises(TypeError, match="Others is not among the fields"):
        Settings().of(Others)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("CLICKMASK_THREADS", "four", "it should be a valid integer"),
        ("CLICKMASK_QUEUE_LENGTH", "0", "it should be greater than or equal to 1"),
        ("CLICKMASK_MAX_IMAGE_BYTES", "200MB", "it should be a valid integer"),
        ("CLICKMASK_DISK_BYTES", "-1", "it should be greater than or equal to 0"),
        ("CLICKMASK_PORT", "99999", "it should be less than or equal to 65535"),
        ("CLICKMASK_TRAIN_SECONDS", "inf", "it should be a finite number"),
        ("CLICKMASK_MIN_IOU", "nan", "it should be"),
        ("CLICKMASK_HOME", "~nobody-of-this-name/x", "there is no user of this name"),
        ("CLICKMASK_TRUSTED_NETWORKS", "everyone", "it is not a valid IPv4 network"),
        ("CLICKMASK_CVAT_CANDIDATES", "perhaps", "it should be a valid boolean"),
        ("CLICKMASK_CVAT_CONTROLS", "disc sharp=2", "disc sharp=2: there is no control 'sharp'"),
        (
            "CLICKMASK_CVAT_CONTROLS",
            "disc x smooth=2",
            "disc x smooth=2: 'x' is not a control such as smooth=2",
        ),
        ("LOG_LEVEL", "loud", "it should be 'debug', 'info', 'warning', 'error' or 'critical'"),
        ("LABEL_STUDIO_URL", "localhost:8080", "it is not an address such as http://host:8080"),
        ("LABEL_STUDIO_URL", "label-studio", "it is not an address such as http://host:8080"),
        ("LABEL_STUDIO_HOST", "http://host:eighty", "it is not an address such as http://host:8080"),
        ("CVAT_URL", "ftp://host", "it is not an address such as http://host:8080"),
    ],
)
def test_a_mistake_is_a_sentence_with_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidRequest) as caught:
        read_settings()
    assert str(caught.value).startswith(f"{variable} is {value!r}: {said}")
    assert "\n" not in str(caught.value)


def test_no_number_of_any_setting_may_be_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [
        name for name, field in Settings.model_fields.items() if isinstance(field.default, int | float)
    ]
    names = [
        name for name in (*numbers, "threads") if not isinstance(Settings.model_fields[name].default, bool)
    ]
    for name in names:
        monkeypatch.setenv(f"CLICKMASK_{name.upper()}", "-1")
    with pytest.raises(InvalidRequest) as caught:
        read_settings()
    assert {line.partition(" ")[0] for line in str(caught.value).splitlines()} == {
        f"CLICKMASK_{name.upper()}" for name in names
    }


def test_a_password_in_a_wrong_address_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAT_URL", "annotator:hush@host")
    with pytest.raises(InvalidRequest, match="CVAT_URL: it is not an address") as caught:
        read_settings()
    assert "hush" not in str(caught.value)


def test_the_names_of_label_studios_own_backends_are_read_after_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        "LABEL_STUDIO_HOST": "http://theirs",
        "LABEL_STUDIO_ACCESS_TOKEN": "their key",
        "BASIC_AUTH_USER": "they",
        "BASIC_AUTH_PASS": "their secret",
        "LOG_LEVEL": "DEBUG",
    }
    ours = {
        "LABEL_STUDIO_URL": "http://ours",
        "LABEL_STUDIO_API_KEY": "our key",
        "CLICKMASK_USERNAME": "we",
        "CLICKMASK_TOKEN": "our secret",
        "CLICKMASK_LOG_LEVEL": "WARN",
    }

    def read() -> list[str]:
        found = read_settings()
        key, token = found.of(LabelStudioSettings).label_studio_api_key, found.token
        assert key and token
        url = str(found.of(LabelStudioSettings).label_studio_url)
        return [url, key.get_secret_value(), found.username, token.get_secret_value(), found.log_level]

    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    assert read() == ["http://theirs", "their key", "they", "their secret", "debug"]
    for name in ours:
        monkeypatch.setenv(name, "")  # as compose files pass it on
    assert read() == ["http://theirs", "their key", "they", "their secret", "debug"]
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    assert read() == ["http://ours", "our key", "we", "our secret", "warning"]
    assert read_settings(token="given", log_level="error").log_level == "error"


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, field in Settings.model_fields.items():
        for variable in variables(name, field):
            monkeypatch.setenv(variable, "")
    settings = read_settings()
    assert (settings.username, settings.token, settings.port) == ("clickmask", None, 9090)


def test_the_port_that_kubernetes_makes_up_for_a_service_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKMASK_PORT", "tcp://10.96.0.12:9090")
    assert read_settings().port == 9090
