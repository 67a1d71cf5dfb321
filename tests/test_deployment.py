"""What cannot be run without a container engine is at least read: names, ports, users, paths."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient

import clickmask_adapters
from clickmask_adapters.home import Home
from clickmask_adapters.server.failures import RecentFailures
from clickmask_adapters.server.gate import Gate
from clickmask_adapters.settings import CoreSettings, Settings, variables
from clickmask_adapters.tools import cvat
from support.served import serving

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def known_variables() -> set[str]:
    return {each for name, field in Settings.model_fields.items() for each in variables(name, field)}


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


def test_the_health_check_needs_no_secret_and_notices_a_server_that_does_not_answer(tmp_path: Path) -> None:
    (check,) = re.findall(r"HEALTHCHECK .*\\\n +CMD (\[(?:.*\\\n)*.*\])", (ROOT / "Dockerfile").read_text())
    _, *arguments = json.loads(check.replace("\\\n", ""))

    def status(port: int) -> int:
        environment = {**os.environ, "CLICKMASK_PORT": str(port)}
        environment.pop("CLICKMASK_TOKEN", None)
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True).returncode

    with serving(tmp_path / "home", CLICKMASK_TOKEN="secret") as server:
        assert status(urlsplit(server.url).port or 0) == 0
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert status(silent.getsockname()[1]) != 0


# --- beside CVAT's own docker-compose.yml, whose services these names are (2.73.0)

CVAT_SERVICES = {"cvat_server", "cvat_worker_annotation", "cvat_worker_webhooks"}
WITH_NUCLIOS_PLACE, ON_THE_HOST = "docker-compose.cvat.yml", "docker-compose.cvat-host.yml"


def override(name: str) -> dict[str, Any]:
    """The file as it ships in the package, with its variables at their defaults."""
    text = (resources.files(clickmask_adapters) / "deploy" / name).read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


@pytest.mark.parametrize("name", [WITH_NUCLIOS_PLACE, ON_THE_HOST])
def test_trap_1_both_of_cvats_services_ask_the_dashboard(name: str) -> None:
    services = override(name)["services"]
    assert set(services) - {"nuclio"} == CVAT_SERVICES
    for service in ("cvat_server", "cvat_worker_annotation"):
        assert services[service]["environment"]["CVAT_NUCLIO_INVOKE_METHOD"] == "dashboard"
    for service in (
        "cvat_server",
        "cvat_worker_webhooks",
    ):  # a ping leaves from the one, deliveries from the other
        assert "--allow-address=" in services[service]["environment"]["SMOKESCREEN_OPTS"]


def test_cvat_finds_clickmask_where_it_looks_for_nuclio() -> None:
    services = override(WITH_NUCLIOS_PLACE)["services"]
    command = services["nuclio"]["command"]
    assert command[command.index("--port") + 1] == "8070"
    ours = urlsplit(cvat.Cvat.default_our_url)
    # For webhooks, to which CVAT 2.73.0 refuses a host without a dot.
    assert services["nuclio"]["networks"]["clickmask"]["aliases"] == [ours.hostname] == ["nuclio.internal"]
    assert ours.port == 8070
    assert not any("CVAT_NUCLIO_HOST" in service.get("environment", {}) for service in services.values())


def test_the_host_variant_names_the_port_that_serve_listens_on() -> None:
    services = override(ON_THE_HOST)["services"]
    for service in ("cvat_server", "cvat_worker_annotation"):
        environment = services[service]["environment"]
        assert environment["CVAT_NUCLIO_HOST"] == "host.docker.internal"
        assert environment["CVAT_NUCLIO_PORT"] == CoreSettings.model_fields["port"].default
    for service in services.values():
        assert service["extra_hosts"] == ["host.docker.internal:host-gateway"]


def test_the_network_beside_cvat_has_our_address_and_only_those_who_need_it() -> None:
    composed = override(WITH_NUCLIOS_PLACE)
    services = composed["services"]
    address = services["nuclio"]["networks"]["clickmask"]["ipv4_address"]
    (subnet,) = (config["subnet"] for config in composed["networks"]["clickmask"]["ipam"]["config"])
    assert ipaddress.ip_address(address) in ipaddress.ip_network(subnet)
    assert services["nuclio"]["environment"]["CLICKMASK_TRUSTED_NETWORKS"] == subnet
    for service in CVAT_SERVICES:
        assert list(services[service]["networks"]) == ["clickmask"]
    for service in ("cvat_server", "cvat_worker_webhooks"):
        assert f"--allow-address={address}" in services[service]["environment"]["SMOKESCREEN_OPTS"].split()
    alias = services["nuclio"]["environment"]["CVAT_URL"].partition("://")[2].partition(":")[0]
    assert alias in services["cvat_server"]["networks"]["clickmask"]["aliases"]
    assert "_" not in alias  # Django refuses such a Host
    assert [mount.partition(":")[0] for mount in services["nuclio"]["volumes"]] == list(composed["volumes"])
    assert "ports" not in services["nuclio"]  # nobody outside has to reach it


def test_nobody_but_cvats_services_may_click_beside_cvat(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = override(WITH_NUCLIOS_PLACE)["services"]["nuclio"]["environment"]
    assert set(environment) <= known_variables()
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value or ""))
    settings = Settings()
    assert not settings.cvat_access_token  # unset in the shell is empty here, and so is no token
    assert not settings.cvat_webhook_secret
    inner = FastAPI()

    @inner.get("/{path:path}")
    async def anything() -> str:
        return "in"

    tool = cvat.create(Home(settings))
    gate = Gate(inner, settings, RecentFailures(), open_paths=tool.open_paths)
    for base in ("http://nuclio:8070", cvat.Cvat.default_our_url):
        for address, path, status in [
            ("10.187.73.3", "/api/functions", 200),
            ("10.187.73.3", "/v1/status", 403),
            ("172.18.0.3", "/api/functions", 403),
        ]:
            assert TestClient(gate, base, client=(address, 5000)).get(path).status_code == status
