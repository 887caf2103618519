"""Command lines of other processes."""

import subprocess
import sys

from imqtt.processes import command_line


def test_the_command_line_of_a_process_is_its_words() -> None:
    program = [sys.executable, "-c", "print(); input()", "two words"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # until it runs, it is a copy of this process
        assert command_line(process.pid) == f"{sys.executable} -c print(); input() two words"
        process.communicate(b"\n")
    assert command_line(process.pid) == ""
