"""Replays the corpus. A failure names the property and the file."""

import pytest

from tests.verification.fuzz.corpus import CORPUS, corpus_files
from tests.verification.fuzz.seeds import seeds
from tests.verification.fuzz.targets import TARGETS

KIBIBYTES = 500  # for the whole corpus: a repository keeps deleted files


@pytest.mark.parametrize("target", TARGETS)
def test_the_properties_hold_for_every_input_of_the_corpus(target: str) -> None:
    law = TARGETS[target]
    for path in corpus_files(target):
        try:
            law(path.read_bytes())
        except Exception as error:
            error.add_note(f"the input is {path}")
            raise


@pytest.mark.parametrize("target", TARGETS)
def test_the_properties_hold_for_every_seed_input(target: str) -> None:
    for data in (b"", *seeds(target)):
        TARGETS[target](data)


def test_each_target_has_a_small_corpus() -> None:
    assert sorted(path.name for path in CORPUS.iterdir()) == sorted(TARGETS)
    sizes = [path.stat().st_size for target in TARGETS for path in corpus_files(target)]
    assert sum(sizes) < KIBIBYTES * 1024
    assert min(len(corpus_files(target)) for target in TARGETS) > 10
