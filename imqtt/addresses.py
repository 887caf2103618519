"""Writing a listener's address in a form that can be pasted back."""


def host_port(host: str, port: int) -> str:
    """`host:port`, or `[host]:port` for an IPv6 address (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
