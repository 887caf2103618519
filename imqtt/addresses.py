"""The text of an address, as users can paste it."""


def host_port(host: str, port: int) -> str:
    """`host:port`, or `[host]:port` for an IPv6 address (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
