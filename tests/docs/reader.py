"""Follows a page: types its commands in order, and carries out the steps that the page describes in words."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.docs import pages
from tests.docs.machine import Machine, Terminal
from tests.docs.not_run import reason
from tests.docs.pages import Block

T = TypeVar("T")
Then = Callable[["Reader"], Awaitable[None]]


class Reader:
    """Each table is keyed by the beginning of a command, and each of its entries has to be used.

    `stays`: the text that a command which runs until Ctrl-C shows when it is ready. `before`, `then`: the
    actions before or after a command. `instead`: the actions in place of commands that are not run. `edits`:
    the replacements for parts of commands, by regular expression.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        stays: dict[str, str] | None = None,
        before: dict[str, Then] | None = None,
        then: dict[str, Then] | None = None,
        instead: dict[str, Then] | None = None,
        edits: dict[str, Callable[["Reader"], str]] | None = None,
    ) -> None:
        self.machine = machine
        self.terminal = machine.terminal()
        self.typed = ""  # the last command that was run to its end
        self.output = ""  # of that command, or the text of the last block without commands
        self.staying: dict[str, Terminal] = {}  # by the command
        self._stays, self._before, self._then = stays or {}, before or {}, then or {}
        self._instead, self._edits = instead or {}, edits or {}
        self._used: set[str] = set()

    async def follow(self, *paths: Path) -> None:
        for path in paths:
            for block in pages.of_page(path):
                if block.language in pages.COMMANDS:
                    for command in block.commands():
                        await self._type(command)
                elif action := self._for(self._then, f"```{block.language}"):
                    self.output = block.text
                    await action(self)
                else:
                    assert block.language in pages.NOT_TYPED, (
                        f"{block.place}: unknown language {block.language}"
                    )
        planned = {*self._stays, *self._before, *self._then, *self._instead, *self._edits}
        assert self._used == planned, f"not used on this page: {planned - self._used}"

    async def _type(self, command: Block) -> None:
        text = command.text
        if action := self._for(self._before, text):
            await action(self)
        for part, replacement in self._edits.items():
            if re.search(part, text):
                self._used.add(part)
                text = re.sub(part, replacement(self).replace("\\", r"\\"), text)
        failure = ""
        try:
            if (why := reason(text)) is not None:
                why.check(re.sub(r"\s+#.*$", "", text))
                if action := self._for(self._instead, text):
                    await action(self)
            elif (ready := self._for(self._stays, text)) is not None:
                staying, self.terminal = self.terminal, self.terminal.copy()
                self.staying[text.partition("  #")[0].strip()] = staying
                await staying.start(text)
                await staying.shows(ready)
            else:
                self.typed, self.output = text, await self.terminal.run(text)
            for action in self._all(self._then, text):
                await action(self)
        except AssertionError as error:
            failure = f"{command.place}: {error}"
        if failure:
            pytest.fail(failure, pytrace=False)

    def _all(self, table: dict[str, T], text: str) -> list[T]:
        found = {beginning: value for beginning, value in table.items() if text.startswith(beginning)}
        self._used |= found.keys()
        return list(found.values())

    def _for(self, table: dict[str, T], text: str) -> T | None:
        return next(iter(self._all(table, text)), None)


def password(output: str, name: str) -> str:
    """The password that `imqtt device add` printed for a device."""
    found = re.search(rf"{re.escape(name)}\s+(\w+)", output)
    assert found, output
    return found[1]
