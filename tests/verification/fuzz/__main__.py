"""Fuzzes each target for its share of the time, guided by coverage, starting from the corpus.

    python -m tests.verification.fuzz [--seconds 600] [--target NAME ...] [--keep]

Exits with status 1 if a property was violated: the input is then printed and kept in `findings/`. Fix the
fault and move the input to `corpus/NAME/fixed-…`, where every test run replays it.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from tests.verification.fuzz.corpus import CORPUS, FINDINGS, FIXED, corpus_files
from tests.verification.fuzz.seeds import seeds
from tests.verification.fuzz.targets import TARGETS

SHARES: Final = {"commands": 3, "frames": 3, "link": 3, "content": 1, "names": 1}  # share of the time
LONGEST: Final = 1_500  # bytes of an input
LIMITS: Final = ("-timeout=10", "-rss_limit_mb=1024")  # per input; exceeding them is a violation
FOUND: Final = ("crash-*", "timeout-*", "oom-*", "leak-*")


HEAD: Final = "target     seconds        runs  a second  edges  features   new  kept  findings"


class Outcome(NamedTuple):
    """What libFuzzer reported. `features`: edges and their counts; `before`: those of the corpus."""

    runs: int
    per_second: int
    edges: int
    features: int
    before: int


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if find_spec("atheris") is None:
        raise SystemExit("atheris is not installed: pip install --group fuzz (CPython on Linux, x86-64)")
    shares = {name: SHARES[name] for name in options.target or TARGETS}
    print(HEAD)
    findings: list[Path] = []
    for name, share in shares.items():
        seconds = max(1, options.seconds * share // sum(shares.values()))
        with tempfile.TemporaryDirectory(prefix=f"imqtt-fuzz-{name}-") as directory:
            work = Path(directory)
            outcome = _fuzz(name, seconds, work)
            found = _collect(name, work)
            if options.keep:
                _merge(name, work)
        findings += found
        print(
            f"{name:<10}{seconds:>8}{outcome.runs:>12,}{outcome.per_second:>10,}{outcome.edges:>7}"
            f"{outcome.features:>10}{outcome.features - outcome.before:>6}"
            f"{len(corpus_files(name)):>6}  {len(found)}",
            flush=True,
        )
    for path in findings:
        _show(path)
    return 1 if findings else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.verification.fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seconds", type=int, default=600, help="seconds for all targets together")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="fuzz only these targets")
    parser.add_argument("--keep", action="store_true", help="add inputs that reached new code to the corpus")
    return parser.parse_args(arguments)


def _fuzz(name: str, seconds: int, work: Path) -> Outcome:
    found, new, begun = (work / each for each in ("found", "new", "begun"))
    for directory in (found, new, begun):
        directory.mkdir()
    for number, seed in enumerate(seeds(name)):
        (begun / str(number)).write_bytes(seed)
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    log = _child(
        name, str(new), str(CORPUS / name), str(begun), f"-max_total_time={seconds}", f"-max_len={LONGEST}",
        f"-artifact_prefix={found}/", "-print_final_stats=1", *LIMITS,
    )  # fmt: skip
    reached = [tuple(map(int, pair)) for pair in re.findall(r"cov: (\d+) ft: (\d+)", log)]
    runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", log)
    per_second = re.findall(r"stat::average_exec_per_sec:\s*(\d+)", log)
    if not any(found.iterdir()) and not (reached and runs):
        raise SystemExit(f"the fuzzer of {name} failed:\n{log[-2_000:]}")
    begun_with = re.search(r"INITED cov: \d+ ft: (\d+)", log)
    edges, features = reached[-1] if reached else (0, 0)
    return Outcome(
        int(runs[0]) if runs else 0,
        int(per_second[0]) if per_second else 0,
        edges,
        features,
        int(begun_with[1]) if begun_with else 0,
    )


def _merge(name: str, work: Path) -> None:
    """The fewest and smallest inputs that reach everything that the old and new ones reach together."""
    merged = work / "merged"
    merged.mkdir()
    log = _child(
        name, "-merge=1", str(merged), str(CORPUS / name), str(work / "begun"), str(work / "new"), *LIMITS
    )
    if not any(merged.iterdir()):
        raise SystemExit(f"merging the corpus of {name} failed:\n{log[-2_000:]}")
    for path in merged.iterdir():
        shutil.copy(path, CORPUS / name / path.name)
    for path in corpus_files(name):
        if not (merged / path.name).exists() and not path.name.startswith(FIXED):
            path.unlink()


def _child(*arguments: str) -> str:
    """The output of libFuzzer, which ends its process and reports findings as files."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.verification.fuzz.child", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    return done.stdout


# --- findings -----------------------------------------------------------------------------------------


def _collect(name: str, work: Path) -> list[Path]:
    """Minimizes the findings and moves them to their directory."""
    paths: list[Path] = []
    for pattern in FOUND:
        for path in (work / "found").glob(pattern):
            place = FINDINGS / name / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            place.write_bytes(smaller(name, data) if pattern == "crash-*" else data)
            paths.append(place)
    return paths


def smaller(name: str, data: bytes) -> bytes:
    """The same fault with fewer bytes: pieces are removed while the same line raises the same error."""
    wanted = _fault(name, data)
    size = len(data) // 2
    while wanted is not None and size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if _fault(name, shorter) == wanted:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def _fault(name: str, data: bytes) -> tuple[str, int | None] | None:
    try:
        TARGETS[name](data)
    except Exception as error:  # noqa: BLE001 - any error is the finding
        return type(error).__name__, traceback.extract_tb(error.__traceback__)[-1].lineno
    return None


def _show(path: Path) -> None:
    data = path.read_bytes()
    print(f"\n{path}\n{data!r}")
    if not path.name.startswith("crash-"):
        return
    try:
        TARGETS[path.parent.name](data)
    except Exception:  # noqa: BLE001 - as above
        print(traceback.format_exc())
    else:
        print("(not reproducible: does state persist between inputs?)")


if __name__ == "__main__":
    sys.exit(main())
