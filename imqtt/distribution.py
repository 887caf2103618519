"""The distribution that installs this package.

It is called `imqtt-server`: on PyPI, `imqtt` is another project. `imqtt-server` is not published yet, so no
message may tell anybody to `pip install` either name.
"""

from importlib.metadata import version

NAME = "imqtt-server"


def installed_version() -> str:
    """The installed version, such as `0.1.0`."""
    return version(NAME)


def how_to_install(extra: str) -> str:
    """What to do when the packages of an optional dependency are missing."""
    return f"run pip install '.[{extra}]' in a checkout of imqtt"
