"""TLS to a broker: contexts for connections, and the reasons of failed handshakes."""

import ssl
from collections.abc import Callable

from imqtt.errors import SetupError
from imqtt.tls_files import reason_of

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
        return f"the broker ended the TLS handshake: {reason_of(error)}"
    return ""
