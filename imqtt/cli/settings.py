"""The settings of `imqtt.config` as command-line flags."""

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from functools import cache
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from imqtt.cli.options import with_signature
from imqtt.cli.output import complain, read_secret
from imqtt.config import SETTINGS, ServerConfig, read_settings, unknown_variables
from imqtt.errors import SetupError

PANEL = "Server settings"
FILE = "config"  # the flag `--config`, the variable IMQTT_CONFIG


class BadSetting(typer.TyperException):
    """A setting has an impossible value, which is wrong usage of the command."""

    exit_code = 2


def server_flags(without: Collection[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command `--config` and one flag per setting, except those in `without`.

    The command receives them as keyword arguments, as text or None, for `server_config`. The flag of a secret
    names a file (`--broker-password-file`), because all users of a machine can see command lines.
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

    `given` overrides all of them. Raises `BadSetting`, or `SetupError` for an unreadable file of a secret.
    """
    values: dict[str, Any] = {setting.name: flags.get(setting.name) for setting in SETTINGS}
    _, file = _settings_file(flags)
    for setting in SETTINGS:
        if setting.secret:
            key = f"{setting.name}_file"
            secret = flags.get(key) or os.environ.get(f"{setting.variable}_FILE")
            if not secret and setting.variable not in os.environ:
                secret = str(file.get(key, ""))
            values[setting.name] = read_secret(secret) if secret else None
    try:
        _warn(tuple(unknown_variables(os.environ)))
        return ServerConfig.from_environment(os.environ, file, **(values | given))
    except SetupError as error:
        raise BadSetting(error.reason) from error


def ignored_settings(flags: dict[str, str | None], names: Collection[str]) -> list[str]:
    """The settings of `names` that are in the environment or the file of `--config`. Raises `BadSetting`."""
    own = [setting for setting in SETTINGS if setting.name in names]
    keys = {setting.name: setting.variable for setting in own}
    keys |= {f"{setting.name}_file": f"{setting.variable}_FILE" for setting in own if setting.secret}
    ignored = [variable for variable in keys.values() if variable in os.environ]
    named, file = _settings_file(flags)
    return ignored + [f"{key} in {named}" for key in keys if key in file]


def _settings_file(flags: dict[str, str | None]) -> tuple[str, Mapping[str, str | int]]:
    """The path and the settings of the file of `--config`; both empty without one. Raises `BadSetting`."""
    named = flags.get(FILE) or os.environ.get(f"IMQTT_{FILE.upper()}", "")
    try:
        return named, read_settings(Path(named)) if named else {}
    except SetupError as error:
        raise BadSetting(error.reason) from error


@cache  # only once per process
def _warn(unknown: tuple[str, ...]) -> None:
    if unknown:
        complain(f"ignored, because imqtt has no such settings: {', '.join(unknown)}")


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
            # A number is text here as well, so that `ServerConfig` reports all errors in the same way.
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
