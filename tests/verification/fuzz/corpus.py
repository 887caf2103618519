"""The kept inputs: those that reached new code, and those that once violated a property."""

from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"  # a folder for each target; libFuzzer names a file by its SHA-1
FINDINGS: Final = HERE / "findings"  # not kept: what is mended moves into the corpus
MENDED: Final = "mended-"  # inputs that broke a law once stay, whatever else reaches the same lines


def kept(target: str) -> list[Path]:
    """The files of this target's corpus, by name."""
    return sorted(path for path in (CORPUS / target).iterdir() if path.is_file())
