"""Options that several commands share: the fields of a dataclass, each with Typer's annotation."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from inspect import Parameter
from typing import Any


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command one option per field of each parameter that is annotated with a dataclass."""
    parameters: list[Parameter] = []
    shared: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = parameter.annotation
        if not is_dataclass(kind):
            parameters.append(parameter)
            continue
        shared[parameter.name] = kind
        parameters += [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(kind)
        ]

    def call(**given: Any) -> Any:
        for name, kind in shared.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        return command(**given)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    return with_signature(call, parameters)


def with_signature(command: Callable[..., Any], parameters: Iterable[Parameter]) -> Callable[..., Any]:
    """`command` with these parameters. Typer reads a command's options from its signature."""
    signature = inspect.Signature(list(parameters))
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()}
    return command
