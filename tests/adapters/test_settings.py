from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

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
