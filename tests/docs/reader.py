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
    """Each table is keyed by how a command begins, and each of its entries has to be of use.

    `stays`: what a command that goes on until Ctrl-C shows when it is ready. `before`, `then`: what is done
    before or after a command. `instead`: what is done in place of one that is not run. `edits`: by a regular
    expression, what stands in for parts of commands.
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
        self.said = ""  # by that command, or in the last block of something else
        self.staying: dict[str, Terminal] = {}  # by the command
        self._stays, self._before, self._then = stays or {}, before or {}, then or {}
        self._instead, self._edits = instead or {}, edits or {}
        self._of_use: set[str] = set()

    async def follow(self, *paths: Path) -> None:
        for path in paths:
            for block in pages.of_page(path):
                if block.language in pages.COMMANDS:
                    for command in block.commands():
                        await self._type(command)
                elif action := self._for(self._then, f"```{block.language}"):
                    self.said = block.text
                    await action(self)
                else:
                    assert block.language in pages.NOT_TYPED, f"{block.place}: what is {block.language}?"
        planned = {*self._stays, *self._before, *self._then, *self._instead, *self._edits}
        assert self._of_use == planned, f"of no use on this page: {planned - self._of_use}"

    async def _type(self, command: Block) -> None:
        text = command.text
        if action := self._for(self._before, text):
            await action(self)
        for part, replacement in self._edits.items():
            if re.search(part, text):
                self._of_use.add(part)
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
                self.typed, self.said = text, await self.terminal.run(text)
            for action in self._all(self._then, text):
                await action(self)
        except AssertionError as error:
            failure = f"{command.place}: {error}"
        if failure:
            pytest.fail(failure, pytrace=False)

    def _all(self, table: dict[str, T], text: str) -> list[T]:
        found = {beginning: value for beginning, value in table.items() if text.startswith(beginning)}
        self._of_use |= found.keys()
        return list(found.values())

    def _for(self, table: dict[str, T], text: str) -> T | None:
        return next(iter(self._all(table, text)), None)


def password(said: str, name: str) -> str:
    """What `imqtt device add` printed for a device."""
    found = re.search(rf"{re.escape(name)}\s+(\w+)", said)
    assert found, said
    return found[1]
