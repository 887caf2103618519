"""README.md, from its first command to its last."""

import json
from pathlib import Path

from tests.docs.machine import machine
from tests.docs.pages import ROOT
from tests.docs.reader import Reader, password
from tests.services import eventually

ALICE, BOB = "imqtt chat bob --user alice", "imqtt chat alice --user bob"


class Newcomer:
    """The steps that the page describes in words, and its promises."""

    def __init__(self) -> None:
        self.password = ""

    async def note_password(self, reader: Reader) -> None:
        self.password = password(reader.output, "alice@shell")

    async def see_where_devices_connect(self, reader: Reader) -> None:
        await reader.staying["imqtt up"].shows("127.0.0.1:1883")

    async def talk(self, reader: Reader) -> None:
        reader.staying[ALICE].type("Hello bob!\r")
        await reader.staying[BOB].shows("Hello bob!")
        reader.staying[BOB].type("Hello alice!\r")
        await reader.staying[ALICE].shows("Hello alice!")

    async def see_that_it_is_stored_once(self, reader: Reader) -> None:
        expected = {"type": "accepted", "conversation": "d:alice:bob", "client_msg_id": "first"}
        [frame] = json.loads(reader.output)["frames"]
        assert expected.items() <= frame.items()
        again = {"type": ""}
        while again["type"] != "accepted":  # it prints what comes first, which may be bob's mark
            again, *_ = json.loads(await reader.terminal.run(reader.typed))["frames"]
        assert (again["seq"], again["id"]) == (frame["seq"], frame["id"])

    async def see_that_no_password_is_an_argument(self, reader: Reader) -> None:
        commands = await reader.machine.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        assert "mosquitto_sub" in commands
        assert self.password not in commands

    async def see_what_others_write(self, reader: Reader) -> None:
        await self.see_that_no_password_is_an_argument(reader)
        shell = reader.staying["mosquitto_sub -q 1 -t imqtt/alice@shell/down"]

        def is_seen() -> bool:
            reader.staying[BOB].type(".\r")  # again, until the shell has subscribed
            return '"sender":"bob"' in shell.shown

        await eventually(is_seen, what="bob's message in the shell")

    async def save_bot(self, reader: Reader) -> None:
        program = reader.output
        assert program.count("…") == 1
        (reader.machine.scratch.parent / "bot.py").write_text(program.replace("…", self.bot_password))
        await reader.terminal.run(f"cp {reader.machine.scratch.parent / 'bot.py'} bot.py")

    async def note_bot_password(self, reader: Reader) -> None:
        self.bot_password = password(reader.output, "echo@bot")

    async def leave_the_chat(self, reader: Reader) -> None:
        await reader.staying[ALICE].interrupt()

    async def hear_the_bot(self, reader: Reader) -> None:
        reader.staying["imqtt chat echo --user alice"].type("Hello bot!\r")
        await reader.staying["imqtt chat echo --user alice"].shows("You said: Hello bot!")


async def test_the_commands_of_the_readme_do_what_the_page_says(tmp_path: Path) -> None:
    newcomer = Newcomer()
    async with machine(tmp_path) as own:
        reader = Reader(
            own,
            stays={
                "imqtt up": "imqtt is ready",
                "imqtt chat": "Enter sends",
                "mosquitto_sub": "",
                "python bot.py": "",
            },
            before={"imqtt chat echo": newcomer.leave_the_chat},
            then={
                "imqtt up": newcomer.see_where_devices_connect,
                "imqtt chat alice": newcomer.talk,
                "imqtt chat echo": newcomer.hear_the_bot,
                "imqtt device add alice@shell": newcomer.note_password,
                "imqtt device add echo@bot": newcomer.note_bot_password,
                "mosquitto_rr": newcomer.see_that_it_is_stored_once,
                "mosquitto_sub": newcomer.see_what_others_write,
                "```python": newcomer.save_bot,
            },
            edits={"that-password": lambda _: newcomer.password},
        )
        await reader.follow(ROOT / "README.md")
        assert await reader.staying["imqtt up"].interrupt() == 0
        await reader.staying["imqtt up"].shows("imqtt has ended; its data is kept.")
