"""The TLS context for connections to the broker, from files that may be replaced at any time."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]


class TlsFileError(OSError):
    """A certificate or key cannot be used. The text names its file."""


class TlsFiles:
    """Makes contexts from `authorities`, and for mutual TLS from `certificate` and its `key` (PEM files).

    An empty `key` means that the certificate's file contains it. A context cannot reload its files, so each
    connection calls `context`, which returns the same context until a file changes.
    """

    def __init__(self, authorities: str, certificate: str = "", key: str = "") -> None:
        self.authorities = authorities
        self.certificate = certificate
        self.key = key
        self._names = [name for name in (authorities, certificate, key) if name]
        self._made: tuple[Stamp, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """The context for the next connection. Raises `TlsFileError`."""
        stamp = tuple(self._stamps())  # before reading the files, so that no change is missed
        if self._made is None or self._made[0] != stamp:
            self._made = None
            self._made = (stamp, self._make())
        return self._made[1]

    def distrust(self) -> None:
        """Makes the next call read the files again. To be called after a connection has failed."""
        self._made = None

    def _stamps(self) -> Iterator[tuple[int, int, int]]:
        for name in self._names:
            try:
                found = Path(name).stat()  # follows links, which may be switched to another file
            except OSError as error:
                raise TlsFileError(f"{name}: {_why(error)}") from error
            yield found.st_ino, found.st_mtime_ns, found.st_size

    def _make(self) -> ssl.SSLContext:
        for name in self._names:  # OpenSSL's errors do not name the file
            try:
                with Path(name).open("rb"):
                    pass
            except OSError as error:
                raise TlsFileError(f"{name}: {_why(error)}") from error
        try:
            context = ssl.create_default_context(cafile=self.authorities)
        except OSError as error:
            raise TlsFileError(f"{self.authorities}: no certificates in PEM form ({_why(error)})") from error
        if self.certificate:
            try:
                context.load_cert_chain(self.certificate, self.key or None, password=_no_password)
            except (OSError, ValueError) as error:
                beside = f" and {self.key}" if self.key else ""
                raise TlsFileError(f"{self.certificate}{beside}: {_why(error)}") from error
        return context


def _no_password() -> str:
    """Called for an encrypted key. Without it, OpenSSL prompts on the terminal and blocks."""
    raise ValueError("the key is encrypted; the server needs one without a passphrase")


def _why(error: Exception) -> str:
    if "PEM lib" in str(error):  # the file lacks the certificate or the key
        return "no certificate, or no private key, in PEM form"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)
