"""The promises of the systemd unit."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imqtt.config import SETTINGS
from imqtt.server.assignment import DRAIN_SECONDS

UNIT = Path(__file__).parents[2] / "deploy" / "imqtt.service"
TEXT = UNIT.read_text()


def systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    output = subprocess.run(
        ["systemd-analyze", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return int(output.split()[1])


needs_systemd = pytest.mark.skipif(systemd_version() < 250, reason="systemd-analyze 250 reads units offline")


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", TEXT, re.MULTILINE)


def test_the_unit_always_restarts_except_after_usage_errors() -> None:
    assert values("Restart") == ["always"]
    assert values("RestartPreventExitStatus") == ["2"]  # the exit status of usage errors
    assert values("StartLimitIntervalSec") == ["0"]


def test_the_unit_signals_the_main_process_and_waits_longer_than_it_needs() -> None:
    assert values("KillMode") == ["mixed"]
    [seconds] = values("TimeoutStopSec")
    assert int(seconds) > DRAIN_SECONDS


def test_every_secret_is_a_credential_and_no_other_setting_is() -> None:
    credentials = re.findall(r"^#?LoadCredential=(\S+):(\S+)$", TEXT, re.MULTILINE)
    variables = dict(re.findall(r"^#?Environment=(\w+)=%d/(\S+)$", TEXT, re.MULTILINE))
    assert variables == {f"{one.variable}_FILE": one.name.replace("_", "-") for one in SETTINGS if one.secret}
    assert credentials == [(name, f"/etc/imqtt/{name}") for name in variables.values()]
    assert len(re.findall("Environment=", TEXT)) == len(variables)


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    here = tmp_path / "imqtt.service"
    here.write_text(TEXT.replace("/opt/imqtt/bin/imqtt", str(Path(sys.executable).parent / "imqtt")))
    done = subprocess.run(["systemd-analyze", "verify", here], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_units_exposure_is_low() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", UNIT],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-200:]
