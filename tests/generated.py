"""Generated text that is committed: written with `--write`, and otherwise checked to be current."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def write_or_check(
    what: str, command: str, *, write: Callable[[], None], stale: Callable[[], list[str]]
) -> None:
    """The `main` of a module that generates `what`. `command` is the command that writes it.

    `stale` returns the names of the files that differ from what `write` would write.
    """
    if "--write" in sys.argv:
        write()
    elif names := stale():
        sys.exit(f"not current: {', '.join(names)}; run `{command}` and commit")
    else:
        print(f"{what} is current")


@dataclass(frozen=True, slots=True)
class Section:
    """The part of `page` between the lines `begin` and `end`, which `make docs` writes from `text()`."""

    page: Path
    begin: str
    end: str
    text: Callable[[], str]

    def main(self, what: str) -> None:
        write_or_check(what, "make docs", write=self.write, stale=self.stale)

    def write(self) -> None:
        self.page.write_text(self._current())

    def stale(self) -> list[str]:
        return [] if self.page.read_text() == self._current() else [self.page.name]

    def _current(self) -> str:
        before, begin, rest = self.page.read_text().partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            sys.exit(f"{self.page.name} has no lines {self.begin.strip()!r} and {self.end.strip()!r}")
        return before + begin + self.text() + end + after
