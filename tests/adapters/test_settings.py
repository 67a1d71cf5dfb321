from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from clickmask_adapters.settings import Settings


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
