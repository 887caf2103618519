"""A user's devices, according to the password file, the store and the server."""

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from imqtt.config import ServerConfig
from imqtt.errors import SetupError
from imqtt.model import Device, Registration
from imqtt.mosquitto.control import Access, ServerUnreachable
from imqtt.stores import attach_store, open_store
from imqtt.stores.base import Identity

if TYPE_CHECKING:
    from imqtt.server.control import DeviceReport


class DeviceRecord(msgspec.Struct, frozen=True):
    """One device. `last_seen` in milliseconds since the Unix epoch; accurate to a day unless `exact`.

    `state` is its presence; "" if unknown. `platform` comes from its `Hello`.
    """

    device: str
    credential: bool
    saved: bool
    platform: str = ""
    state: str = ""
    last_seen: int = 0
    exact: bool = False

    @property
    def seen(self) -> str:
        if not self.last_seen:
            return ""
        time = datetime.fromtimestamp(self.last_seen / 1_000, UTC)
        return time.strftime("%Y-%m-%d %H:%M:%SZ" if self.exact else "%Y-%m-%d")


def read_records(
    user: str,
    credentials: Collection[str],
    saved: Collection[str],
    config: ServerConfig,
    access: Access | None,
) -> tuple[list[DeviceRecord], list[str]]:
    """All devices of `user`, sorted, and the reasons for missing details."""
    problems: list[str] = []
    registrations: dict[str, Registration] = {}
    try:
        registrations = {str(one.device): one for one in asyncio.run(_registrations(user, config))}
    except SetupError as error:
        problems.append(f"platforms and when devices were last seen are not shown: {error.reason}")
    seen, trouble = _presence(user, access)
    if trouble:
        problems.append(f"states are not shown: {trouble}")
    names = {name for name in credentials if name.startswith(f"{user}@")} | registrations.keys()
    records: list[DeviceRecord] = []
    for name in sorted(names):
        registration, presence = registrations.get(name), seen.get(name)
        last = registration.seen if registration is not None else 0
        if presence is not None:
            last = max(last, presence.since)
        records.append(
            DeviceRecord(
                name,
                credential=name in credentials,
                saved=name in saved,
                platform=registration.platform if registration is not None else "",
                state=presence.state if presence is not None else ("" if trouble else "offline"),
                last_seen=last,
                exact=presence is not None,
            )
        )
    return records, problems


def _presence(user: str, access: Access | None) -> "tuple[dict[str, DeviceReport], str]":
    """The presence of each device that the server knows, or the reason why it is unknown."""
    if access is None:
        return {}, "no broker runs on this data directory, or the settings lack the server's password"
    try:
        report = access.ask(user)
    except ServerUnreachable as error:
        return {}, error.reason
    trouble = "" if report.known else "the server cannot reach Redis"
    return {one.device: one for one in report.devices}, trouble


async def _registrations(user: str, config: ServerConfig) -> tuple[Registration, ...]:
    store = await attach_store(config.store, password=config.store_password, driver=config.mongo_driver)
    try:
        return (await store.devices([user]))[user]
    finally:
        await store.close()


async def remove_records(devices: Collection[Device], store: str) -> None:
    """Removes devices from a store that no server has open. Raises `SetupError`."""
    opened = await open_store(store, Identity.draw(0))
    try:
        for device in devices:
            await opened.remove_device(device)
    finally:
        await opened.close()
