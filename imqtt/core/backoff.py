"""Exponential backoff with jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""


def backoff(attempt: int, chance: float, *, base: float = 0.1, cap: float = 5.0) -> float:
    """Seconds to wait before retry `attempt` (the first is 1). `chance`: random, 0 to 1.

    At least a tenth of the bound, so that retries never become a busy loop.
    """
    bound = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return bound * (0.1 + 0.9 * chance)


def untaken(attempt: int, chance: float, *, most: float = 2.0, cap: float = 15.0) -> float:
    """Seconds to wait before repeating a publish that had no subscriber for the `attempt`th time.

    Between half of `most` and `most`, since the server usually reconnects soon. The bound doubles from the
    fifth attempt on, up to `cap`, so that many devices do not keep the broker busy. `chance`: random, 0 to 1.
    """
    bound = min(max(cap, most), most * 2.0 ** min(max(attempt - 4, 0), 30))
    return bound * (0.5 + 0.5 * chance)
