"""`ServerConfig` as flags: each setting's name, type, default and help stand in `imqtt.config` alone."""

import inspect
import os
from collections.abc import Callable, Collection
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from imqtt.cli.options import with_signature
from imqtt.cli.output import complain, read_secret
from imqtt.config import SETTINGS, ServerConfig, SettingsFile, unknown_variables
from imqtt.errors import SetupError

PANEL = "Server settings"
FILE = "config"  # the flag `--config`, the variable IMQTT_CONFIG


class BadSetting(typer.TyperException):
    """A setting with a value that it cannot have: a wrong use of the command."""

    exit_code = 2


def server_flags(without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command one flag for each setting but those in `without`, and `--config`.

    The command receives them as keywords, as text or None, for `server_config`. A secret has no flag, since
    everybody on the machine sees a process's arguments: `--broker-password-file` names a file instead.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command).parameters.values()
        flags = (
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=option)
            for name, option in _options(without).items()
        )
        return with_signature(
            command, [*(one for one in own if one.kind is not Parameter.VAR_KEYWORD), *flags]
        )

    return decorate


def server_config(flags: dict[str, str | None], **given: Any) -> ServerConfig:
    """The settings from a command's flags, else the environment, else the file of `--config`.

    `given` comes before all of them. Raises `BadSetting`, and `SetupError` for a secret's file that cannot
    be read.
    """
    values: dict[str, Any] = {setting.name: flags.get(setting.name) for setting in SETTINGS}
    try:
        named = flags.get(FILE) or os.environ.get(f"IMQTT_{FILE.upper()}")
        file = SettingsFile.read(Path(named)) if named else None
        _warn(tuple(unknown_variables(os.environ)))
    except SetupError as error:
        raise BadSetting(error.reason) from error
    for setting in SETTINGS:
        if setting.secret:
            key = f"{setting.name}_file"
            secret = flags.get(key) or os.environ.get(f"{setting.variable}_FILE")
            if not secret and file is not None and setting.variable not in os.environ:
                secret = str(file.settings.get(key, ""))
            values[setting.name] = read_secret(secret) if secret else None
    try:
        return ServerConfig.from_environment(os.environ, file, **(values | given))
    except SetupError as error:
        raise BadSetting(error.reason) from error


def given_in_vain(flags: dict[str, str | None], names: Collection[str]) -> list[str]:
    """Those settings that the environment or the file of `--config` gives a command which sets them itself.

    By their variables, and by their lines with the file's name. Raises `BadSetting`.
    """
    vain: list[str] = []
    keys = {it.name: it.variable for it in SETTINGS if it.name in names}
    keys |= {f"{it.name}_file": f"{it.variable}_FILE" for it in SETTINGS if it.name in names and it.secret}
    vain += [variable for variable in keys.values() if variable in os.environ]
    if named := flags.get(FILE) or os.environ.get(f"IMQTT_{FILE.upper()}"):
        try:
            lines = SettingsFile.read(Path(named)).settings
        except SetupError as error:
            raise BadSetting(error.reason) from error
        vain += [f"{key} in {named}" for key in keys if key in lines]
    return vain


@cache  # once, however often the settings are read
def _warn(unknown: tuple[str, ...]) -> None:
    if unknown:
        complain(f"ignored, as imqtt has no such settings: {', '.join(unknown)}")


def _options(without: Collection[str]) -> dict[str, Any]:
    options: dict[str, Any] = {
        FILE: _option(
            "--config",
            "FILE",
            "TOML file with settings by name; flags and environment variables override it"
            f" [none; IMQTT_{FILE.upper()}]",
        )
    }
    for setting in SETTINGS:
        if setting.name in without:
            continue
        if setting.secret:
            options[f"{setting.name}_file"] = _option(
                setting.flag,
                "FILE",
                f"file with {setting.help}, on its first line; or set {setting.variable}",
            )
        else:
            # Text, though it be a number: `ServerConfig` says what is wrong with it, wherever it is from.
            default = "none" if setting.default == "" else setting.default
            bounds = f" ({setting.bounds})" if setting.bounds else ""
            options[setting.name] = _option(
                setting.flag,
                "N" if setting.number else "TEXT",
                f"{setting.help}{bounds} [{default}; {setting.variable}]",
            )
    return options


def _option(flag: str, metavar: str, help: str) -> Any:
    return Annotated[str | None, typer.Option(flag, metavar=metavar, help=help, rich_help_panel=PANEL)]
