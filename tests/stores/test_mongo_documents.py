"""Documents of another version of imqtt, with fewer or more fields."""

import msgspec
from bson import Int64

from imqtt.model import Content, Device, Marks, Registration
from imqtt.stores.base import Identity
from imqtt.stores.mongo.store import MongoStore
from tests.contract.stores import record
from tests.mongodb import database_url

D = "d:alice:bob"


async def test_missing_fields_have_their_defaults_and_unknown_fields_are_ignored() -> None:
    store = await MongoStore.open(database_url(), Identity.draw(16))
    await store.append([record(D, 1)])
    events = store._database.get_collection("events")
    await events.update_one({"s": 1}, {"$unset": {"k": 1, "t": 1, "d": 1, "b": 1}, "$set": {"z": {"new": 1}}})
    await store._database.get_collection("devices").insert_one({"u": "bob", "d": "tv", "shape": "round"})
    await store._database.get_collection("marks").insert_one({"c": D, "u": "bob", "delivered": Int64(1)})
    [event] = await store.events_after(D, 0, 10)
    assert (event.kind, event.client_time, event.device, event.content) == ("message", 0, "", Content())
    assert await store.devices(["bob"]) == {"bob": (Registration(Device("bob", "tv"), ""),)}
    marks = (await store.marks([D]))[D]
    assert marks == [Marks(D, "bob", 1, 0)]
    assert msgspec.json.encode(marks)  # it does not know the driver's own integers
    assert await store.raise_marks([Marks(D, "bob", 1, 1)]) == [Marks(D, "bob", 1, 1)]
    await store.close()
