"""The promises of the Dockerfile, as far as reading it tells."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
FINAL = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


def test_both_stages_have_the_same_pinned_python_that_imqtt_supports() -> None:
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(stages) == 2
    assert len(set(stages)) == 1
    assert re.fullmatch(r"python:3\.1[1-9]-slim", stages[0])


def test_the_image_runs_as_an_unprivileged_user_of_its_own() -> None:
    [user] = re.findall(r"^USER (.*)$", FINAL, re.MULTILINE)
    assert int(user) > 999  # a number, which an orchestrator can tell from root's
    assert f"--uid {user} " in FINAL


def test_the_image_stops_on_sigterm_and_has_a_health_check() -> None:
    assert "\nSTOPSIGNAL SIGTERM\n" in FINAL
    assert "\nHEALTHCHECK " in FINAL
    assert '\nENTRYPOINT ["imqtt"]\n' in FINAL


def test_the_health_check_is_valid_python() -> None:
    [source] = re.findall(r'CMD \["python", "-c", "([^"]*)"\]', FINAL)
    compile(source, "HEALTHCHECK", "exec")
    assert "IMQTT_HEALTH" in FINAL.split("HEALTHCHECK")[0]


def test_every_copied_file_exists_and_is_visible_to_the_builder() -> None:
    allowed = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = [
        path
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for path in line.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_no_layer_has_a_secret() -> None:
    assert not re.search(r"^(ARG|ENV) .*(PASSWORD|SECRET|TOKEN)", DOCKERFILE, re.MULTILINE)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"  # other files stay outside
