"""Several runs of the same measurements: medians, with the lowest and the highest."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any


def medians(runs: Sequence[Any]) -> Any:
    """The results of one run, with each number replaced by its median over all `runs`, which are alike."""
    return _combined(runs, lambda numbers: round(median(numbers), 3))


def spread(runs: Sequence[Any]) -> Any:
    """The same with [lowest, highest] for each number."""
    return _combined(runs, lambda numbers: [min(numbers), max(numbers)])


def figures(runs: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """The numbers of all runs by their path of keys. Lists in results are left out."""
    found: dict[str, list[float]] = {}
    for name, results in runs.items():
        if isinstance(results[0], Mapping):
            inner = figures({key: [result[key] for result in results] for key in results[0]})
            found |= {f"{name} {key}": numbers for key, numbers in inner.items()}
        elif _is_number(results[0]):
            found[name] = list(results)
    return found


def _combined(runs: Sequence[Any], combine: Callable[[Sequence[float]], Any]) -> Any:
    first = runs[0]
    if isinstance(first, Mapping):
        return {key: _combined([run[key] for run in runs], combine) for key in first}
    if isinstance(first, list):
        return [_combined(items, combine) for items in zip(*runs, strict=True)]
    return combine(runs) if _is_number(first) else first


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
