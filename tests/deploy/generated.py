"""Writes the table of settings into docs/deployment.md, or (without --write) proves that it is current."""

import sys
from pathlib import Path

from imqtt.config import SETTINGS

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
BEGIN = "<!-- settings: written by `make docs` from imqtt/config.py -->\n"
END = "<!-- end of settings -->\n"


def table() -> str:
    rows = ["| setting | default | unit and bounds | what it is |", "| --- | --- | --- | --- |"]
    for one in SETTINGS:
        name = f"`{one.name}`" + (f", `{one.name}_file`" if one.secret else "")
        default = "none" if one.default == "" else f"`{one.default}`"
        rows.append(f"| {name} | {default} | {one.bounds} | {one.help} |")
    return "\n".join(rows) + "\n"


def written(page: str) -> str:
    """`page` with the table as it should be."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{PAGE.name} has no place for the table of settings")
    return before + BEGIN + table() + END + after


def main() -> None:
    page = PAGE.read_text()
    if "--write" in sys.argv:
        PAGE.write_text(written(page))
    elif written(page) != page:
        sys.exit(f"not current: {PAGE.name}; run `make docs` and commit")
    else:
        print("the table of settings is current")


if __name__ == "__main__":
    main()
