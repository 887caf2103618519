"""Presence belongs to the nonce of the last connection, and lasts as long as the device sends commands."""

from time import time_ns

from imqtt.model import Device
from imqtt.state.base import DevicePresence, State

DAY = 86_400_000
PHONE = Device("alice", "phone")
LAPTOP = Device("alice", "laptop")
TV = Device("bob", "tv")


def presence(
    device: Device = PHONE,
    state: str = "online",
    *,
    nonce: str = "n1",
    since: int = 1_000,
    expires: int = 2_000,
) -> DevicePresence:
    return DevicePresence(device, nonce, state, since, expires)


async def states(state: State, user: str = "alice") -> dict[str, str]:
    return {
        presence.device.device: presence.state for presence in (await state.presence([user])).get(user, ())
    }


async def test_a_device_that_has_arrived_is_present(state: State) -> None:
    await state.arrive(presence(PHONE))
    await state.arrive(presence(LAPTOP, "away", nonce="n2"))
    await state.arrive(presence(TV))
    found = await state.presence(["alice", "bob", "carol"])
    assert set(found) == {"alice", "bob"}
    assert set(found["alice"]) == {presence(PHONE), presence(LAPTOP, "away", nonce="n2")}
    assert found["bob"] == (presence(TV),)


async def test_a_new_connection_replaces_the_last(state: State) -> None:
    await state.arrive(presence(nonce="old"))
    now = presence(nonce="new", since=1_500, expires=2_500)
    await state.arrive(now)
    assert (await state.presence(["alice"]))["alice"] == (now,)


async def test_a_status_of_this_connection_counts(state: State) -> None:
    await state.arrive(presence())
    away = presence(state="away", since=1_500, expires=2_500)
    assert await state.update(away) is True
    assert (await state.presence(["alice"]))["alice"] == (away,)


async def test_a_status_of_another_connection_changes_nothing(state: State) -> None:
    await state.arrive(presence(nonce="old"))
    await state.arrive(presence(nonce="new"))
    assert await state.update(presence(state="offline", nonce="old")) is False
    assert (await state.presence(["alice"]))["alice"] == (presence(nonce="new"),)


async def test_the_status_of_an_unknown_device_is_accepted(state: State) -> None:
    assert await state.update(presence()) is True
    assert await state.presence(["alice"]) == {"alice": (presence(),)}


async def test_the_will_of_an_unknown_device_is_accepted_and_does_not_fix_its_nonce(state: State) -> None:
    assert await state.update(presence(state="offline", nonce="maybe old")) is True
    assert await states(state) == {"phone": "offline"}
    assert await state.update(presence(state="away", nonce="n1", since=1_100)) is True
    assert await states(state) == {"phone": "away"}


async def test_a_device_can_return_with_the_nonce_with_which_it_left(state: State) -> None:
    await state.arrive(presence())
    assert await state.update(presence(state="offline", since=1_500)) is True
    assert await states(state) == {"phone": "offline"}
    assert await state.update(presence(state="online", since=1_600)) is True
    assert await states(state) == {"phone": "online"}


async def test_presence_expires_once(state: State) -> None:
    await state.arrive(presence(PHONE, expires=2_000))
    await state.arrive(presence(LAPTOP, expires=3_000))
    assert await state.expired(1_999) == []
    gone = await state.expired(2_000)
    assert [(presence.device, presence.state) for presence in gone] == [(PHONE, "offline")]
    assert await states(state) == {"phone": "offline", "laptop": "online"}
    assert await state.expired(2_500) == []
    assert [presence.device for presence in await state.expired(9_000)] == [LAPTOP]
    assert await state.expired(9_000) == []


async def test_any_command_keeps_a_device_present(state: State) -> None:
    await state.arrive(presence(PHONE, expires=2_000))
    await state.arrive(presence(LAPTOP, expires=2_000))
    assert await state.refresh([PHONE], 1_500, 5_000) == {}
    assert [presence.device for presence in await state.expired(4_999)] == [LAPTOP]
    assert [presence.device for presence in await state.expired(5_000)] == [PHONE]


async def test_a_presence_set_by_a_clock_that_is_ahead_lasts_no_longer_than_others(state: State) -> None:
    now = time_ns() // 1_000_000
    await state.arrive(presence(PHONE, expires=now + DAY))
    await state.arrive(presence(LAPTOP, expires=now + 1_000))
    await state.arrive(presence(TV, expires=now + 1_000))
    await state.refresh([TV], now, now + DAY)
    assert await state.expired(now, 60_000) == []
    assert [presence.device for presence in await state.expired(now + 2_000)] == [LAPTOP]
    assert await states(state, "bob") == {"tv": "online"}
    await state.refresh([TV], now, now + 90_000)
    assert [presence.device for presence in await state.expired(now + 80_000)] == [PHONE]
    assert [presence.device for presence in await state.expired(now + 90_000)] == [TV]


async def test_a_command_makes_an_unknown_device_present(state: State) -> None:
    await state.arrive(presence(PHONE, nonce="n1"))
    assert await state.refresh([TV, PHONE, LAPTOP], 1_500, 5_000) == {TV: "", LAPTOP: ""}
    assert await state.refresh([TV, PHONE, LAPTOP], 1_600, 5_001) == {}
    assert (await state.presence(["bob"]))["bob"] == (presence(TV, nonce="", since=1_500, expires=5_001),)
    assert await states(state) == {"laptop": "online", "phone": "online"}
    assert {presence.device for presence in await state.expired(5_001)} == {PHONE, LAPTOP, TV}


async def test_any_will_ends_a_connection_whose_nonce_is_unknown(state: State) -> None:
    await state.refresh([PHONE], 1_500, 5_000)
    assert await state.update(presence(state="offline", nonce="n7", since=1_600)) is True
    assert await states(state) == {"phone": "offline"}


async def test_a_status_sets_the_nonce_of_a_connection_whose_nonce_was_unknown(state: State) -> None:
    await state.refresh([PHONE], 1_500, 5_000)
    assert await state.update(presence(state="away", nonce="new", since=1_600)) is True
    assert await state.update(presence(state="offline", nonce="old", since=1_700)) is False
    assert await states(state) == {"phone": "away"}


async def test_a_silent_device_returns_with_any_command_on_the_same_connection(
    state: State,
) -> None:
    await state.arrive(presence(nonce="n1", expires=2_000))
    await state.expired(2_500)
    assert await state.refresh([PHONE], 2_600, 5_000) == {PHONE: "n1"}
    assert (await state.presence(["alice"]))["alice"] == (presence(since=2_600, expires=5_000),)
    assert await state.update(presence(state="offline", nonce="n0", since=2_700)) is False
    assert await state.update(presence(state="offline", nonce="n1", since=2_800)) is True


async def test_a_late_command_does_not_bring_back_a_device_that_has_just_gone_offline(state: State) -> None:
    await state.arrive(presence())
    await state.update(presence(state="offline", since=1_500, expires=11_500))
    assert await state.refresh([PHONE], 11_499, 19_000) == {}
    assert await states(state) == {"phone": "offline"}
    assert await state.expired(30_000) == []
    assert await state.refresh([PHONE], 11_500, 20_000) == {PHONE: ""}
    assert (await state.presence(["alice"]))["alice"] == (presence(nonce="", since=11_500, expires=20_000),)


async def test_an_earlier_expiry_counts_too(state: State) -> None:
    await state.arrive(presence(expires=9_000))
    await state.arrive(presence(nonce="n2", expires=2_000))
    assert [presence.device for presence in await state.expired(2_000)] == [PHONE]
    assert await state.expired(9_000) == []


async def test_a_device_that_expired_and_arrives_again_expires_again(state: State) -> None:
    await state.arrive(presence(expires=2_000))
    await state.expired(2_000)
    await state.arrive(presence(nonce="n2", expires=4_000))
    assert await states(state) == {"phone": "online"}
    assert [presence.device for presence in await state.expired(4_000)] == [PHONE]


async def test_many_devices_that_fall_silent_at_once_are_each_found_once(state: State) -> None:
    devices = [Device(f"user{number}", "phone") for number in range(2_500)]
    for device in devices:
        await state.arrive(presence(device))
    gone = await state.expired(2_000)
    assert sorted(presence.device for presence in gone) == sorted(devices)
    assert {(presence.nonce, presence.state, presence.since) for presence in gone} == {
        ("n1", "offline", 2_000)
    }
    assert await state.expired(9_000) == []


async def test_commands_do_not_shorten_a_presence(state: State) -> None:
    await state.arrive(presence(expires=9_000))
    await state.refresh([PHONE], 1_500, 2_000)
    assert await state.expired(8_999) == []
    assert await state.refresh([], 1_500, 20_000) == {}
    assert [presence.device for presence in await state.expired(9_000)] == [PHONE]


async def test_nonces_and_states_are_kept_as_they_are(state: State) -> None:
    strange = presence(
        state="do not disturb \N{SLEEPING FACE}", nonce="\x00 '\"\n\x7f", since=-1, expires=1 << 52
    )
    await state.arrive(strange)
    assert await state.presence(["alice"]) == {"alice": (strange,)}
    assert await state.presence([]) == {}
