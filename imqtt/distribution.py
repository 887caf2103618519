"""The distribution that installs this package.

Its name is `imqtt-server`, because `imqtt` on PyPI is another project. It is not published yet, so no text
may tell users to `pip install` either name.
"""

from importlib.metadata import version


def installed_version() -> str:
    """The installed version, such as `0.1.0`."""
    return version("imqtt-server")


def how_to_install(extra: str) -> str:
    return f"run pip install '.[{extra}]' in a checkout of imqtt"
