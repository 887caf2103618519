"""Exponential backoff with jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""


def backoff(attempt: int, chance: float, *, base: float = 0.1, cap: float = 5.0, least: float = 0.1) -> float:
    """Seconds to wait before retry `attempt` (the first is 1). `chance`: random, 0 to 1.

    `least`: the smallest part of the bound, so that retries never become a busy loop.
    """
    bound = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return bound * (least + (1 - least) * chance)


def untaken(attempt: int, chance: float, *, most: float = 2.0, cap: float = 15.0) -> float:
    """Seconds to wait before repeating a publish that had no subscriber for the `attempt`th time.

    Between half of `most` and `most`, since the server usually reconnects soon. The bound doubles from the
    fifth attempt on, up to `cap`, so that many devices do not keep the broker busy. `chance`: random, 0 to 1.
    """
    return backoff(max(attempt - 3, 1), chance, base=most, cap=max(cap, most), least=0.5)
