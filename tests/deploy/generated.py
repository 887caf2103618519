"""Writes the table of settings into docs/deployment.md, or (without --write) checks that it is current."""

from pathlib import Path

from imqtt.config import SETTINGS
from tests.generated import Section

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def table() -> str:
    rows = ["| setting | default | unit and bounds | what it is |", "| --- | --- | --- | --- |"]
    for one in SETTINGS:
        name = f"`{one.name}`" + (f", `{one.name}_file`" if one.secret else "")
        default = "none" if one.default == "" else f"`{one.default}`"
        rows.append(f"| {name} | {default} | {one.bounds} | {one.help} |")
    return "\n".join(rows) + "\n"


SECTION = Section(
    PAGE,
    "<!-- settings: written by `make docs` from imqtt/config.py -->\n",
    "<!-- end of settings -->\n",
    table,
)

if __name__ == "__main__":
    SECTION.main("the table of settings")
