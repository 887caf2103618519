"""Certificates for tests, made with openssl, and a broker that listens with them."""

import os
import subprocess
from pathlib import Path

from imqtt.mosquitto.broker import Mosquitto
from imqtt.mosquitto.system_user import broker_user
from tests.broker.peers import free_port


class Authority:
    """A certificate authority in its own directory, which issues certificates."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.file = directory / f"{name}.pem"
        self._key = directory / f"{name}.key"
        self._serial = 0
        _openssl(
            "req", "-x509", "-days", "2", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.file,
        )  # fmt: skip

    def issue(self, name: str, *, hosts: str = "", days: int = 2, file: str = "") -> tuple[Path, Path]:
        """A certificate and its key. `name` is its common name; `hosts` such as `IP:127.0.0.1`."""
        self._serial += 1
        certificate = self.directory / f"{file or name}.pem"
        key, request, more = (certificate.with_suffix(suffix) for suffix in (".key", ".csr", ".ext"))
        more.write_text(f"subjectAltName={hosts}\n" if hosts else "basicConstraints=CA:FALSE\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-days", days,
            "-set_serial", self._serial, "-extfile", more, "-out", certificate,
        )  # fmt: skip
        return certificate, key


class TlsMosquitto(Mosquitto):
    """A broker with three more listeners on 127.0.0.1, all with this certificate.

    `tls_port` and `wss_port` use TLS; `certified_port` also requires a client certificate, whose common name
    is the username.
    """

    def __init__(self, directory: Path, authority: Authority, certificate: tuple[Path, Path]) -> None:
        super().__init__(directory)
        self.tls_port, self.certified_port, self.wss_port = free_port(), free_port(), free_port()
        self._authority = authority
        self._certificate = certificate

    def _prepare(self) -> None:
        super()._prepare()
        user = broker_user(self._user_name)  # None: the broker runs as the user of the tests
        names = {"broker.pem": self._certificate[0], "broker.key": self._certificate[1]}
        for name, path in (names | {"authority.pem": self._authority.file}).items():
            copy = self.files.home / name
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o600)
            if user is not None:
                os.chown(copy, user.uid, user.gid)
        files = "certfile broker.pem\nkeyfile broker.key\nuse_username_as_clientid true\n"
        certified = "cafile authority.pem\n"
        certified += "require_certificate true\nuse_identity_as_username true\n"
        with self.files.configuration.open("a") as configuration:
            configuration.write(f"listener {self.tls_port} 127.0.0.1\n{files}")
            configuration.write(f"listener {self.certified_port} 127.0.0.1\n{files}{certified}")
            configuration.write(f"listener {self.wss_port} 127.0.0.1\nprotocol websockets\n{files}")


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
