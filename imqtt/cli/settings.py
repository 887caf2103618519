"""`ServerConfig` as flags: each setting's name, type, default and help stand in `imqtt.config` alone."""

import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import MISSING, fields
from typing import Annotated, Any

import typer

from imqtt.cli.output import read_secret
from imqtt.config import ServerConfig
from imqtt.errors import SetupError

PANEL = "Server settings"


class BadSetting(typer.TyperException):
    """A setting with a value that it cannot have: a wrong use of the command."""

    exit_code = 2


def server_flags(without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command one flag for each setting but those in `without`.

    The command receives them as keywords, as text or None, for `server_config`. A secret has no flag, since
    everybody on the machine sees a process's arguments: `--broker-password-file` names a file instead.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        parameters = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        for name, option in _options(without).items():
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
            )
        # typer reads a command's options from its signature.
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def server_config(flags: dict[str, str | None], **given: Any) -> ServerConfig:
    """The settings from a command's flags, else from the environment; `given` comes before both.

    Raises `BadSetting`.
    """
    values: dict[str, Any] = {}
    for setting in fields(ServerConfig):
        values[setting.name] = flags.get(setting.name)
        file = flags.get(f"{setting.name}_file") or os.environ.get(f"IMQTT_{setting.name.upper()}_FILE")
        if setting.metadata["secret"] and file:
            values[setting.name] = read_secret(file)
    try:
        return ServerConfig.from_environment(os.environ, **(values | given))
    except SetupError as error:
        raise BadSetting(error.reason) from error


def _options(without: Collection[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for setting in fields(ServerConfig):
        if setting.name in without:
            continue
        name, text = setting.name, setting.metadata["help"]
        variable = f"IMQTT_{name.upper()}"
        if setting.metadata["secret"]:
            options[f"{name}_file"] = Annotated[
                str | None,
                typer.Option(
                    f"--{name.replace('_', '-')}-file",
                    metavar="FILE",
                    help=f"{text}: a file whose first line it is; or in {variable}",
                    rich_help_panel=PANEL,
                ),
            ]
            continue
        default = "" if setting.default is MISSING else str(setting.default)
        number = setting.type in (int, "int")
        # Text, though it be a number: `ServerConfig` itself says what is wrong with it, wherever it is from.
        options[name] = Annotated[
            str | None,
            typer.Option(
                f"--{name.replace('_', '-')}",
                metavar="N" if number else "TEXT",
                help=f"{text} [{default or 'none'}; {variable}]",
                rich_help_panel=PANEL,
            ),
        ]
    return options
