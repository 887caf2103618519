"""Writes the reference in docs/sdk.md from the code, or (without --write) checks that it is current."""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_origin

from imqtt import client, errors, model
from tests.generated import Section

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sdk.md"

# The classes in order, by module. A test checks that these are all of `imqtt.client`.
SECTIONS = {
    "The client": {"imqtt/client/client.py": ["Client"]},
    "Settings": {
        "imqtt/client/settings.py": ["Timing"],
        "imqtt/protocol/__init__.py": ["Format"],
    },
    "Iterators": {"imqtt/client/feed.py": ["Events", "Queue"]},
    "The connection": {
        "imqtt/client/values.py": ["ConnectionState"],
        "imqtt/core/connection.py": ["Phase"],
    },
    "Conversations and messages": {
        "imqtt/client/values.py": ["Summary"],
        "imqtt/core/outbox.py": ["Entry"],
        "imqtt/core/conversation_view.py": ["ConversationView", "Message", "Hole"],
        "imqtt/model.py": ["Accepted", "Event", "Content", "Position"],
    },
    "Notices": {
        "imqtt/model.py": ["Marks", "Presence", "PeerTyping"],
        "imqtt/core/changes.py": ["Restarted", "Skipped"],
        "imqtt/client/values.py": ["Refused"],
    },
}
ERRORS = [
    "ClientError", "NotConnected", "TlsFailed", "TakenOver", "Discarded", "CredentialsRefused",
    "DeviceStoreError", "DeviceStoreInUse",
    "SetupError", "Malformed", "Invalid", "TooLarge", "NotAllowed", "NotFound", "AlreadyRecalled", "Conflict",
    "Unsupported",
]  # fmt: skip


TYPES = {
    name: alias.__origin__.__name__ for name, alias in vars(model).items() if get_origin(alias) is Annotated
}


def reference() -> str:
    parts: list[str] = []
    for title, files in SECTIONS.items():
        parts.append(f"### {title}\n")
        for file, names in files.items():
            source = (ROOT / file).read_text()
            nodes = ast.walk(ast.parse(source))
            classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
            for name in names:
                parts += _class(classes[name], source)
    parts.append("### Errors\n")
    parts.append(f"All are in `imqtt.errors` and derive from `ImqttError`. {_paragraph(errors.ImqttError)}\n")
    parts += [
        f"- `{error.__name__}` (`{error.code}`): {_paragraph(error)}"
        for error in (getattr(errors, name) for name in ERRORS)
    ]
    return "\n".join(parts) + "\n"


def _class(node: ast.ClassDef, source: str) -> Iterator[str]:
    yield f"#### {node.name}\n"
    constructor = next((function for function in _functions(node) if function.name == "__init__"), None)
    assignments = [child for child in node.body if isinstance(child, ast.AnnAssign | ast.Assign)]
    fields = [
        assignment
        for assignment in assignments
        if not _is_private(assignment) and "ClassVar" not in ast.unparse(assignment)
    ]
    if constructor is not None and node.name == "Client":
        yield _fence(f"Client({_arguments(constructor)})")
    elif fields:
        yield _fence(*(_field(field, source.splitlines()) for field in fields))
    yield _markdown(ast.get_docstring(node) or "")
    for function in _functions(node):
        if not function.name.startswith("_") and ast.get_docstring(function):
            yield _method(node.name, function)


def _method(of: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    decorators = {name.id for name in node.decorator_list if isinstance(name, ast.Name)}
    if "classmethod" not in decorators:
        of = of.lower()
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    if "property" in decorators:
        shown = f"{of}.{node.name}{returns}"
    else:
        wait = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
        shown = f"{wait}{of}.{node.name}({_arguments(node)}){returns}"
    return f"{_fence(shown)}\n{_markdown(ast.get_docstring(node) or '')}"


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]


def _field(node: ast.AnnAssign | ast.Assign, source: list[str]) -> str:
    """The field as one line. If its default is split over several lines, their comments are joined."""
    assert node.end_lineno is not None
    lines = source[node.lineno - 1 : node.end_lineno]
    if len(lines) == 1:
        return _plain(lines[0].strip())
    comments = [comment for _, found, comment in (line.partition("  # ") for line in lines) if found]
    return "  # ".join([ast.unparse(node), *filter(None, [" ".join(comments)])])


def _plain(line: str) -> str:
    """The field's line with the plain type of an annotated alias, so that readers see no constraints."""
    return re.sub(r"(?<=: )\w+", lambda match: TYPES.get(match[0], match[0]), line, count=1)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))


def _is_private(node: ast.AnnAssign | ast.Assign) -> bool:
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    return not isinstance(target, ast.Name) or target.id.startswith("_")


def _fence(*lines: str) -> str:
    wrapped = [
        part for line in lines for part in textwrap.wrap(line, 108, subsequent_indent="    ") or [line]
    ]
    return "\n".join(["```text", *wrapped, "```", ""])


def _markdown(doc: str) -> str:
    """The docstring as Markdown: lines that begin with a `name`: become a list."""
    lines: list[str] = []
    is_item = False
    for line in doc.splitlines():
        begins = re.match(r"`\w+`: ", line) is not None
        is_item = begins or (is_item and bool(line))
        lines.append(f"- {line}" if begins else f"  {line}" if is_item else line)
    return "\n".join(lines) + "\n"


def _paragraph(of: type) -> str:
    words = " ".join((of.__doc__ or "").split())
    return words.removeprefix("The root. ")


def public() -> set[str]:
    """The names that the page describes."""
    return {name for files in SECTIONS.values() for names in files.values() for name in names} | set(ERRORS)


def exported() -> set[str]:
    return set(client.__all__)


SECTION = Section(
    PAGE,
    "<!-- reference: written by `make docs` from the docstrings -->\n",
    "<!-- end of reference -->\n",
    lambda: f"\n{reference()}\n",
)

if __name__ == "__main__":
    SECTION.main("the SDK's reference")
