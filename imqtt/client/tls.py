"""TLS to a broker: contexts for connections, and the reasons of failed handshakes."""

import ssl
from collections.abc import Callable
from pathlib import Path

from imqtt.errors import SetupError

MakeContext = Callable[[], ssl.SSLContext]

_UNKNOWN_AUTHORITY = (
    "the broker's certificate is signed by an unknown authority: give the authority's file with --ca,"
    " or tls=ssl.create_default_context(cafile=…)"
)

# OpenSSL's codes for untrusted certificates (x509_vfy.h).
_UNTRUSTED = {
    9: "the broker's certificate is not valid yet (or this machine's clock is wrong)",
    10: "the broker's certificate has expired",
    **dict.fromkeys((18, 19, 20, 21), _UNKNOWN_AUTHORITY),
}
_OTHER_HOST = (62, 64)

# The broker's alerts (RFC 8446, section 6), by OpenSSL's names.
_ALERTS = {
    "CERTIFICATE_REQUIRED": "the broker asks for a client certificate: give --cert and --key, or load one"
    " into the context of tls=",
    "UNKNOWN_CA": "the broker does not know the authority that signed this device's certificate",
    "CERTIFICATE_EXPIRED": "this device's certificate has expired",
    "CERTIFICATE_REVOKED": "this device's certificate is revoked",
    "CERTIFICATE_UNKNOWN": "the broker does not accept this device's certificate",
    "BAD_CERTIFICATE": "the broker does not accept this device's certificate",
    "HANDSHAKE_FAILURE": "the broker refuses the TLS handshake; it may ask for a client certificate:"
    " --cert and --key",
    "PROTOCOL_VERSION": "this device and the broker have no version of TLS in common",
}


class TlsContexts:
    """Provides each new connection with a context: the given one, or that of a given function."""

    def __init__(self, given: ssl.SSLContext | MakeContext | None) -> None:
        """`None`: certificates are verified by the system's authorities. Raises `SetupError`."""
        self._given = ssl.create_default_context() if given is None else given
        self.context()

    def context(self) -> ssl.SSLContext:
        """The context of a new connection. Raises `SetupError`."""
        context: object = self._given
        if not isinstance(context, ssl.SSLContext) and callable(context):
            try:
                context = context()
            except (OSError, ValueError) as error:
                raise SetupError(f"tls: the context cannot be made: {error}") from error
        if not isinstance(context, ssl.SSLContext):
            raise SetupError("tls: neither an ssl.SSLContext nor a function that returns one")
        if context.protocol is ssl.PROTOCOL_TLS_SERVER:
            raise SetupError("tls: this SSLContext is for servers: use ssl.create_default_context(cafile=…)")
        if context.verify_mode is ssl.CERT_NONE:
            raise SetupError(
                "tls: this SSLContext verifies no certificate, so anybody could pretend to be the broker and"
                " take the password: use ssl.create_default_context(cafile=…)"
            )
        return context


def files_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """A context from PEM files. Raises `SetupError`, which names the file.

    Without `ca`, the system's authorities are trusted. Without `key`, the file of `certificate` holds it.
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
        raise SetupError(f"{ca}: no certificates in PEM form ({_reason(error)})") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ValueError) as error:
            beside = f" and {key}" if key is not None else ", which has to hold its key as well"
            raise SetupError(f"{certificate}{beside}: {_reason(error)}") from error
    return context


def explain(error: BaseException) -> str:
    """Why a handshake failed; "" if that is not certain."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _OTHER_HOST:
            return f"the broker's certificate is for another host ({error.verify_message.rstrip('.')})"
        unknown = f"the broker's certificate is not trusted: {error.verify_message}"
        return _UNTRUSTED.get(error.verify_code, unknown)
    if isinstance(error, ssl.SSLError) and error.reason and "ALERT" in error.reason:
        for name, meaning in _ALERTS.items():
            if error.reason.endswith(name):
                return meaning
        return f"the broker ended the TLS handshake: {_reason(error)}"
    return ""


def _reason(error: Exception) -> str:
    if "PEM lib" in str(error):  # OpenSSL's words for a file without a certificate or key
        return "no certificate, or no private key, in PEM form"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(error)
