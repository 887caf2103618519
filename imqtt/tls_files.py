"""TLS contexts from PEM files, which may be replaced at any time."""

import ssl
from collections.abc import Callable
from pathlib import Path

from imqtt.errors import SetupError

Stamp = tuple[tuple[int, int, int], ...]


class TlsFileError(OSError):
    """A certificate or key cannot be used. The text names its file."""


def files_context(
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    *,
    passphrase: Callable[[], str] | None = None,
) -> ssl.SSLContext:
    """A client's context from PEM files. Raises `SetupError`, which names the file.

    Without `ca`, the system's authorities are trusted. Without `key`, the file of `certificate` holds it.
    `passphrase` is called for an encrypted key; without it, OpenSSL prompts on the terminal.
    """
    if key is not None and certificate is None:
        raise SetupError(f"{key} is given without a certificate: give the certificate as well")
    for path in (ca, certificate, key):
        if path is not None:
            try:
                path.open("rb").close()  # OpenSSL's error does not name the file
            except OSError as error:
                raise SetupError(f"cannot read {path}: {error.strerror}") from error
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise SetupError(f"{ca}: no certificates in PEM form ({reason_of(error)})") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=passphrase)
        except (OSError, ValueError) as error:
            beside = f" and {key}" if key is not None else ", which has to hold its key as well"
            raise SetupError(f"{certificate}{beside}: {reason_of(error)}") from error
    return context


class TlsFiles:
    """The server's contexts, from `authorities`, and for mutual TLS from `certificate` and its `key`.

    An empty `key` means that the certificate's file contains it. A context cannot reload its files, so each
    connection calls `context`, which returns the same context until a file changes.
    """

    def __init__(self, authorities: str, certificate: str, key: str) -> None:
        self.authorities = authorities
        self._paths = [Path(name) if name else None for name in (authorities, certificate, key)]
        self._made: tuple[Stamp, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """The context for the next connection. Raises `TlsFileError`."""
        made, self._made = self._made, None
        try:
            # Before reading the files, so that no change is missed. `stat` follows links, which may be
            # switched to another file.
            stamp = tuple(_stamp(path) for path in self._paths if path is not None)
            if made is None or made[0] != stamp:
                made = (stamp, files_context(*self._paths, passphrase=_no_passphrase))
        except SetupError as error:
            raise TlsFileError(error.reason) from error
        self._made = made
        return made[1]

    def distrust(self) -> None:
        """Makes the next call read the files again. To be called after a connection has failed."""
        self._made = None


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    return found.st_ino, found.st_mtime_ns, found.st_size


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted; the server needs one without a passphrase")


def reason_of(error: Exception) -> str:
    """Why OpenSSL refuses something, in words."""
    if "PEM lib" in str(error):  # OpenSSL's words for a file without a certificate or key
        return "no certificate, or no private key, in PEM form"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)
