"""The promises of deploy/compose.yaml, as far as reading it tells: no container engine is needed."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from imqtt.config import SETTINGS, ServerConfig

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
WHOLE: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES: dict[str, dict[str, Any]] = WHOLE["services"]
RUNNING = [name for name, service in SERVICES.items() if "profiles" not in service]

each_service = pytest.mark.parametrize("name", SERVICES)
each_running = pytest.mark.parametrize("name", RUNNING)


def commands(service: dict[str, Any]) -> str:
    return str([service.get(part) for part in ("entrypoint", "command", "healthcheck")])


@each_service
def test_images_of_others_are_pinned_to_a_version(name: str) -> None:
    service = SERVICES[name]
    assert re.search(r":\d+(\.\d+)*$", service["image"]), service["image"]
    assert ("build" in service) == service["image"].startswith("imqtt:")


@each_running
def test_every_service_has_a_health_check_and_is_restarted(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"]
    assert SERVICES[name]["restart"] == "unless-stopped"


@each_service
def test_no_service_runs_as_root_or_may_become_root(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert name == "worker" or service["user"] not in ("root", "0", 0)  # a worker's user is its image's


def test_every_secret_is_a_file_that_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([DEPLOY / "compose" / "secrets", tmp_path / "secrets"], check=True)
    drawn = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert WHOLE["secrets"] == {name: {"file": f"secrets/{name}"} for name in drawn}
    assert all(re.fullmatch(r"[0-9a-f]{48}\n", word) for word in drawn.values())
    assert len(set(drawn.values())) == len(drawn)
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_existing_secrets_are_kept(tmp_path: Path) -> None:
    (tmp_path / "state_password").write_text("mine\n")
    subprocess.run([DEPLOY / "compose" / "secrets", tmp_path], check=True)
    assert (tmp_path / "state_password").read_text() == "mine\n"


@each_service
def test_no_password_is_in_an_environment_or_an_argument(name: str) -> None:
    service = SERVICES[name]
    environment = service.get("environment", {})
    for variable, value in environment.items():
        if "PASSWORD" in variable and variable != "PASSWORDS":
            assert variable.endswith("_FILE")
            assert value.removeprefix("/run/secrets/") in service["secrets"]
    assert not re.search(r"://[^/ ]*:[^/ ]*@", str(environment) + commands(service))
    assert set(service.get("secrets", [])) <= set(WHOLE["secrets"])


def test_only_the_devices_ports_are_published_and_by_default_on_this_machine() -> None:
    published = {port for service in SERVICES.values() for port in service.get("ports", [])}
    assert published == {
        "${IMQTT_BIND:-127.0.0.1}:${IMQTT_MQTT_PORT:-1883}:1883",
        "${IMQTT_BIND:-127.0.0.1}:${IMQTT_WEBSOCKET_PORT:-8083}:8083",
    }
    assert "host" not in [service.get("network_mode") for service in SERVICES.values()]


def test_devices_and_workers_are_on_separate_networks() -> None:
    inside = {name: set(service.get("networks", [])) for name, service in SERVICES.items()}
    assert inside == {
        "mosquitto": {"devices", "broker"},
        "redis": {"data"},
        "mongo": {"data"},
        "worker": {"broker", "data"},
        "device": {"broker", "data"},
    }
    assert WHOLE["networks"]["broker"] == WHOLE["networks"]["data"] == {"internal": True}


def test_the_device_command_has_the_workers_settings_of_broker_and_store() -> None:
    device, worker = SERVICES["device"]["environment"], SERVICES["worker"]["environment"]
    settings = {name: value for name, value in device.items() if name.startswith("IMQTT_")}
    assert settings == {name: worker[name] for name in settings}
    assert {"IMQTT_BROKER_PASSWORD_FILE", "IMQTT_STORE_PASSWORD_FILE"} <= settings.keys()


def test_workers_start_when_the_services_that_they_need_are_healthy() -> None:
    needed = {"mosquitto", "redis", "mongo"}
    assert SERVICES["worker"]["depends_on"] == {name: {"condition": "service_healthy"} for name in needed}
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


def test_the_workers_variables_are_settings() -> None:
    environment = {
        name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
        for name, value in SERVICES["worker"]["environment"].items()
    }
    known = {one.variable for one in SETTINGS} | {f"{one.variable}_FILE" for one in SETTINGS if one.secret}
    assert set(environment) <= known
    config = ServerConfig.from_environment(environment)
    assert config.broker_host in SERVICES
    assert re.fullmatch(r"mongodb://imqtt@mongo:27017/imqtt\?replicaSet=imqtt", config.store)
    assert re.fullmatch(r"redis://redis:6379/0", config.state)
    assert config.partitions == 64


def test_a_workers_grace_period_is_longer_than_its_time_to_finish_commands() -> None:
    from imqtt.server.assignment import DRAIN_SECONDS

    for name in RUNNING:
        seconds = SERVICES[name].get("stop_grace_period", "10s")
        assert name != "worker" or int(seconds.rstrip("s")) > DRAIN_SECONDS


def test_every_mounted_path_is_in_the_checkout_or_a_volume() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, target, *mode = mount.split(":")
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
                assert mode == ["ro"], mount
            else:
                assert source in WHOLE["volumes"], mount
            assert target.startswith("/")
        for part in [*service.get("entrypoint", []), *service.get("healthcheck", {}).get("test", [])]:
            if part.startswith("/deploy/"):
                assert (DEPLOY.parent / part[1:]).is_file(), part


def test_only_the_data_of_the_broker_and_the_store_are_kept() -> None:
    kept = {mount for service in SERVICES.values() for mount in service.get("volumes", []) if mount[0] != "."}
    assert kept == {"broker:/mosquitto/data", "store:/data/db"}
