"""Packaging: the sdist, the wheel built from it, and an environment with that wheel."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SECRET = "5b5f6f2a"  # planted in the checkout that is packed


class Installed(NamedTuple):
    sdist: list[str]
    """Paths in the sdist, without its top folder."""
    environment: Path
    """A virtual environment with the wheel in it."""

    def python(self, program: str) -> str:
        """The output of a Python program there, outside of the checkout."""
        return self.run(self.environment / "bin" / "python", "-c", program)

    def run(self, *command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Packs a copy of the checkout and installs it with the dependencies that these tests run on."""
    directory = tmp_path_factory.mktemp("wheel")
    checkout = directory / "checkout"
    ignore = shutil.ignore_patterns(".*", "tests", "bench", "data", "secrets")
    shutil.copytree(ROOT, checkout, ignore=ignore)
    for private in ("deploy/secrets/broker_password", "data/server-password", "imqtt.db"):
        (checkout / private).parent.mkdir(exist_ok=True)
        (checkout / private).write_text(SECRET)
    pack(checkout, "sdist", directory)
    [sdist] = directory.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(directory / "unpacked", filter="data")
    [source] = (directory / "unpacked").iterdir()
    pack(source, "wheel", directory)
    [wheel] = directory.glob("*.whl")
    environment = directory / "environment"
    venv.create(environment, symlinks=True)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "--python", environment / "bin" / "python",
            "install", "--quiet", "--no-index", "--no-deps", wheel,
        ],
        check=True,
    )  # fmt: skip
    paths = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    return Installed(paths, environment)


def pack(source: Path, target: str, directory: Path) -> None:
    """Builds with the installed build backend: no network is needed."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(directory)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


def test_the_command_runs_and_knows_its_version(installed: Installed) -> None:
    assert re.fullmatch(
        r"imqtt \d+\.\d+\.\d+\n", installed.run(installed.environment / "bin" / "imqtt", "--version")
    )


def test_the_package_is_typed_and_comes_from_the_wheel(installed: Installed) -> None:
    where = Path(installed.python("import imqtt; print(imqtt.__file__)").strip()).parent
    assert where.is_relative_to(installed.environment)
    assert (where / "py.typed").is_file()


def test_the_wheel_contains_the_broker_configuration(installed: Installed) -> None:
    program = "from imqtt.mosquitto.installation import configuration; print(configuration())"
    place = Path(installed.python(program).strip())
    assert place.is_relative_to(installed.environment)
    for name in ("mosquitto.conf", "acl"):
        assert (place / name).read_text() == (ROOT / "deploy" / "mosquitto" / name).read_text()


def test_the_metadata_names_the_distribution_and_its_license(installed: Installed) -> None:
    [metadata] = installed.environment.glob("lib/python*/site-packages/imqtt_server-*.dist-info/METADATA")
    header = metadata.read_text().partition("\n\n")[0].splitlines()
    assert "Name: imqtt-server" in header
    assert "License-Expression: Apache-2.0" in header
    assert "License-File: LICENSE" in header
    assert (metadata.parent / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert [line for line in header if line.startswith("Requires-Dist: imqtt")] == []
    assert [line for line in header if line.startswith("Requires-Dist: pymongo") and "'scale'" in line]


def test_the_dockerfile_installs_the_wheel_by_its_name(installed: Installed) -> None:
    [pattern] = re.findall(r"/wheels/([\w.*-]+\.whl)", (ROOT / "Dockerfile").read_text())
    assert len(list(installed.environment.parent.glob(pattern))) == 1


def test_the_sdist_has_the_listed_files_and_nothing_private(installed: Installed) -> None:
    tops = {path.partition("/")[0] for path in installed.sdist}
    assert tops == {
        "CHANGELOG.md", "Dockerfile", "LICENSE", "PKG-INFO", "README.md", "deploy", "docs", "imqtt",
        "pyproject.toml", "topics.md",
    }  # fmt: skip
    assert {"imqtt/py.typed", "imqtt/protocol/imqtt.proto", "deploy/mosquitto/acl"} <= set(installed.sdist)
    assert [path for path in installed.sdist if re.search(r"secrets/|__pycache__|\.pyc$|\.db", path)] == []


def test_no_page_or_program_suggests_installing_another_project() -> None:
    """`imqtt` on PyPI is another project, and `imqtt-server` is not there yet."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Dockerfile", ROOT / "Makefile"]
    programs = [*ROOT.glob("imqtt/**/*.py"), *(path for path in ROOT.glob("deploy/**/*") if path.is_file())]
    wrong = re.compile(r"\bimqtt\[|\binstall(\s+-\S+)*\s+['\"]?imqtt\b")
    found = {
        path.relative_to(ROOT).as_posix(): match[0]
        for path in [*pages, *programs]
        if (match := wrong.search(path.read_text()))
    }
    assert found == {}
