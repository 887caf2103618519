"""Addresses without secrets. Logs, errors and pages show addresses only in this form."""

import re

# Options of MongoDB's and Redis's addresses whose values are shown. Any other option may contain a secret,
# such as the password of a key file or a session token.
SHOWN_OPTIONS = frozenset(
    name.lower()
    for name in (
        "appName", "authMechanism", "authSource", "compressors", "connectTimeoutMS", "directConnection",
        "heartbeatFrequencyMS", "journal", "loadBalanced", "localThresholdMS", "maxConnecting",
        "maxIdleTimeMS", "maxPoolSize", "maxStalenessSeconds", "minPoolSize", "readConcernLevel",
        "readPreference", "readPreferenceTags", "replicaSet", "retryReads", "retryWrites",
        "serverMonitoringMode", "serverSelectionTimeoutMS", "socketTimeoutMS", "srvMaxHosts",
        "srvServiceName", "ssl", "timeoutMS", "tls", "tlsAllowInvalidCertificates",
        "tlsAllowInvalidHostnames", "tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile", "tlsInsecure", "w",
        "waitQueueTimeoutMS", "wTimeoutMS", "zlibCompressionLevel",
        "db", "ssl_ca_certs", "ssl_ca_path", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname",
        "ssl_keyfile", "ssl_min_version",
    )
)  # fmt: skip
_SHOWN_VALUE = re.compile(r"[A-Za-z0-9_.,:/+-]*")


def redacted(url: str) -> str:
    """`url` with `***` instead of a password and of options that may be secrets.

    Values are shown only for options that are known to be harmless (`SHOWN_OPTIONS`). Everything from the
    first colon to the last `@` counts as a password. In a correct URL, it would end at the first `/`, but a
    password that is not escaped must not be shown either.
    """
    if url.startswith("sqlite:///"):
        return url
    scheme, separator, rest = url.partition("://")
    if not separator:  # a mistyped address
        scheme, rest = "", url
    account, at, place = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    if at and colon:
        rest = f"{user}:***@{place}"
    where, question, options = rest.partition("?")
    shown = "&".join(map(_shown_option, re.split("[&;]", options))) if question else ""
    return f"{scheme}{separator}{where}{question}{shown}"


def _shown_option(option: str) -> str:
    name, equals, value = option.partition("=")
    if name.lower() in SHOWN_OPTIONS and _SHOWN_VALUE.fullmatch(value):
        return option
    return f"{name}{equals}***" if equals else "***"
