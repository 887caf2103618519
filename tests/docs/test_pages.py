"""All pages: the commands of those without a test of their own, and the commands mentioned in prose."""

import re
from pathlib import Path

import pytest
import typer

from imqtt.config import SETTINGS
from tests.docs import not_run, pages
from tests.docs.machine import DIRECTORIES, machine
from tests.docs.reader import Reader

OWN_TEST = {"README.md", "docs/backup.md", "docs/deployment.md", "docs/sdk.md"}
OTHERS = [path for path in pages.PAGES if path.relative_to(pages.ROOT).as_posix() not in OWN_TEST]

VARIABLE = re.compile(r"\bIMQTT_[A-Z_]*[A-Z]\b")

each_page = pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
async def test_the_commands_of_a_page_run(path: Path, tmp_path: Path) -> None:
    async def try_three(reader: Reader) -> None:
        await reader.terminal.run("python -m tests.verification.simulation --seeds 3")

    many = "python -m tests.verification.simulation --seeds 100000"
    async with machine(tmp_path) as own:
        reader = Reader(own, instead={many: try_three} if many in path.read_text() else {})
        await reader.terminal.run(". .venv/bin/activate")
        await reader.follow(path)


def test_every_command_excluded_from_running_is_on_a_page() -> None:
    commands = [
        re.sub(r"\s+#.*$", "", command.text)
        for path in pages.PAGES
        for block in pages.of_page(path)
        if block.language in pages.COMMANDS
        for command in block.commands()
    ]
    unused = [
        pattern
        for pattern in not_run.NOT_RUN
        if not any(re.fullmatch(pattern, text, re.DOTALL) for text in commands)
    ]
    assert unused == []


@each_page
def test_commands_mentioned_in_prose_exist(path: Path) -> None:
    for span in pages.mentions(path.read_text()):
        if re.match(r"imqtt [a-z-]", span):
            not_run.is_mentioned_imqtt_command(span)
        elif re.match(r"make [a-z]", span):
            not_run.is_make_target(span)


@each_page
def test_environment_variables_on_a_page_are_read_by_the_code(path: Path) -> None:
    readers = [
        *pages.ROOT.glob("imqtt/**/*.py"),
        *pages.ROOT.glob("tests/**/*.py"),
        pages.ROOT / "deploy/compose.yaml",
    ]
    read = set(VARIABLE.findall("\n".join(reader.read_text() for reader in readers)))
    read |= {one.variable for one in SETTINGS} | {f"{one.variable}_FILE" for one in SETTINGS if one.secret}
    assert set(VARIABLE.findall(path.read_text())) - read == set()


def test_code_blocks_and_commands_are_parsed() -> None:
    page = """\
Words:

    one        # by itself
    two \\
        goes on

- a list

  ```sh
  cat > file <<END
  # text
  END
  three
  ```

```text
not typed
```
    no block: no empty line before it
"""
    blocks = pages.blocks(page, "page.md")
    assert [(block.line, block.language) for block in blocks] == [(3, ""), (10, "sh"), (17, "text")]
    commands = [(command.line, command.text) for block in blocks[:2] for command in block.commands()]
    assert commands == [
        (3, "one        # by itself"),
        (4, "two \\\n    goes on"),
        (10, "cat > file <<END\n# text\nEND"),
        (13, "three"),
    ]
    with pytest.raises(ValueError, match=r"page\.md:1: a fence needs a language"):
        pages.blocks("```\nwhat?\n```\n", "page.md")


async def test_a_failing_command_is_reported_with_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Type this:\n\n    cd docs\n    test -e backup.md\n    nosuch --option\n")
    async with machine(tmp_path) as own:
        with pytest.raises(pytest.fail.Exception, match=r"page\.md:5: nosuch --option\nends with 127"):
            await Reader(own).follow(page)
        page.write_text("Nothing to type.\n")
        with pytest.raises(AssertionError, match="nosuch"):
            await Reader(own, stays={"nosuch": ""}).follow(page)


async def test_commands_in_a_namespace_do_not_affect_the_host(tmp_path: Path) -> None:
    written = [directory / "imqtt-written" for directory in DIRECTORIES]
    async with machine(tmp_path) as own:
        terminal = own.terminal()
        for path in written:
            await terminal.run(f"touch {path} && test -e {path}")
        assert await terminal.run("export A=b; cd docs; touch here") == ""
        assert await terminal.copy().run("echo $A; ls here") == "b\nhere\n"
    assert [path for path in written if path.exists()] == []


def test_mentions_are_found() -> None:
    page = "Say `imqtt\nup`.\n\n    `not` this\n\n```sh\n`nor` this\n```\n``a ` b`` and `--flag`\n"
    assert pages.mentions(page) == ["imqtt up", "--flag"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("docker compose -f deploy/compose.yaml exec wroker imqtt workers", "wroker"),
        ("docker compose -f deploy/compose.yaml exec worker imqtt wrokers", "wrokers"),
        ("docker compose -f deploy/compose.yaml run --rm device add", "names"),
        ("docker compose -f deploy/compose.yaml up --scale woker=4", "woker"),
        ("docker compose -f deploy/kompose.yaml up", "kompose"),
        ("systemctl restart imqttd", "imqttd"),
    ],
)
def test_commands_excluded_from_running_are_checked(command: str, message: str) -> None:
    why = not_run.reason(command)
    assert why is not None
    with pytest.raises((AssertionError, OSError, typer.TyperException), match=message):
        why.check(command)
