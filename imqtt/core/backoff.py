"""How long to wait before trying again: exponential, with full jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""


def backoff(attempt: int, chance: float, *, base: float = 0.1, cap: float = 5.0) -> float:
    """Seconds to wait before try `attempt` (the first retry is 1). `chance` is drawn from 0 to 1.

    Never less than a tenth of the bound: waiting nothing at all would be trying in a loop.
    """
    bound = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return bound * (0.1 + 0.9 * chance)
