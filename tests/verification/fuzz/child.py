"""One target under atheris, in its own process, because libFuzzer ends the process that it runs in.

python -m tests.verification.fuzz.child TARGET [libFuzzer's arguments]
"""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["imqtt"], exclude=["imqtt.protocol.generated"]):
    from tests.verification.fuzz.targets import TARGETS

from tests.verification.fuzz.mutation import mutate


def main() -> None:
    target, arguments = sys.argv[1], sys.argv[2:]

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutate(target, data, Random(seed), atheris.Mutate, most)

    # The program that libFuzzer starts again with other arguments, to merge.
    itself = f"{sys.executable} -m tests.verification.fuzz.child {target}"
    atheris.Setup([itself, *arguments], TARGETS[target], custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
