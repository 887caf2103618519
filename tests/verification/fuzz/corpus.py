"""The corpus: inputs that reached new code, and inputs that once violated a property."""

from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"  # a directory per target; libFuzzer names a file by its SHA-1
FINDINGS: Final = HERE / "findings"  # temporary: inputs of fixed faults move to the corpus
FIXED: Final = "fixed-"  # inputs that once violated a property stay, even if others reach the same lines


def corpus_files(target: str) -> list[Path]:
    """The files of this target's corpus, by name."""
    return sorted(path for path in (CORPUS / target).iterdir() if path.is_file())
