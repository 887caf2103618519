"""The TLS context of the broker's connections, from files that may be replaced while it is in use."""

import os
import ssl
from collections.abc import Iterator
from pathlib import Path

Stamp = tuple[tuple[int, int, int], ...]


class TlsFileError(OSError):
    """A file of the TLS settings cannot be used. Its text names the file."""


class TlsFiles:
    """Makes contexts from `authorities`, and for mutual TLS from `certificate` and its `key` (PEM files).

    `key` may be "": the certificate's file holds it as well. A context cannot be told to read its files
    again, so every connection asks for one, and gets the same one until a file changes.
    """

    def __init__(self, authorities: str, certificate: str = "", key: str = "") -> None:
        self.authorities = authorities
        self.certificate = certificate
        self.key = key
        self._made: tuple[Stamp, ssl.SSLContext] | None = None

    def context(self) -> ssl.SSLContext:
        """The context for a connection that is made now. Raises `TlsFileError`."""
        stamp = tuple(
            self._stamps()
        )  # before reading the files, so that a change meanwhile is seen next time
        if self._made is None or self._made[0] != stamp:
            self._made = None
            self._made = (stamp, self._make())
        return self._made[1]

    def distrust(self) -> None:
        """A connection failed. The next one reads the files again even if they look unchanged."""
        self._made = None

    def _stamps(self) -> Iterator[tuple[int, int, int]]:
        for name in self._names():
            try:
                found = Path(name).stat()  # of the file that a link leads to: links are switched too
            except OSError as error:
                raise TlsFileError(f"{name}: {_why(error)}") from error
            yield found.st_ino, found.st_mtime_ns, found.st_size

    def _names(self) -> list[str]:
        return [name for name in (self.authorities, self.certificate, self.key) if name]

    def _make(self) -> ssl.SSLContext:
        for name in self._names():  # OpenSSL's own error does not say which file it is about
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
    """Called for an encrypted key. OpenSSL would block on a prompt on the terminal instead."""
    raise ValueError("the key is encrypted; the server needs one without a passphrase")


def _why(error: Exception) -> str:
    if "PEM lib" in str(error):  # what OpenSSL says of a file without what is looked for
        return "no certificate, or no private key, in PEM form"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)
