"""What other processes run."""

import subprocess
import sys

from imqtt.processes import command_line


def test_the_command_line_of_a_process_is_its_words() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", "two words"], stdin=subprocess.PIPE) as process:
        assert command_line(process.pid) == f"{sys.executable} -c input() two words"
        process.communicate(b"\n")
    assert command_line(process.pid) == ""
