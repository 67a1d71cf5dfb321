"""What cannot be run without a container engine is at least read: names, ports, users, paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clickmask_adapters.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def known_variables() -> set[str]:
    aliases = {
        str(field.validation_alias) for field in Settings.model_fields.values() if field.validation_alias
    }
    return aliases | {f"CLICKMASK_{name.upper()}" for name in Settings.model_fields}


def test_compose_sets_only_variables_that_are_read(compose: dict[str, Any]) -> None:
    assert set(compose["services"]["clickmask"]["environment"]) <= known_variables()


def test_compose_publishes_to_this_machine_only_and_needs_secrets(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert ":?" in compose["services"]["clickmask"]["environment"]["CLICKMASK_TOKEN"]
    assert ":?" in compose["services"]["label-studio"]["environment"]["LABEL_STUDIO_USER_TOKEN"]


def test_compose_lets_label_studio_reach_a_private_backend(compose: dict[str, Any]) -> None:
    environment = compose["services"]["label-studio"]["environment"]
    assert environment["ML_BLOCK_LOCAL_IP"] == environment["SSRF_PROTECTION_ENABLED"] == "false"


def test_every_volume_is_declared(compose: dict[str, Any]) -> None:
    mounted = {
        mount.partition(":")[0] for service in compose["services"].values() for mount in service["volumes"]
    }
    assert mounted == set(compose["volumes"])


def test_the_image_serves_as_an_ordinary_user_and_copies_only_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.*(?:\\\n.*)*)", text, re.MULTILINE)
    names = [name for name, _ in instructions]
    assert names.index("USER") < names.index("CMD")
    assert dict(instructions)["USER"] == "1000"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for name, arguments in instructions:
        if name == "COPY":
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored
