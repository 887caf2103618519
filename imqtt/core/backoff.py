"""How long to wait before trying again: exponential, with jitter.

Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""


def backoff(attempt: int, chance: float, *, base: float = 0.1, cap: float = 5.0) -> float:
    """Seconds to wait before try `attempt` (the first retry is 1). `chance` is drawn from 0 to 1.

    Never less than a tenth of the bound: waiting nothing at all would be trying in a loop.
    """
    bound = min(cap, base * 2.0 ** min(attempt - 1, 30))
    return bound * (0.1 + 0.9 * chance)


def untaken(attempt: int, chance: float, *, most: float = 2.0, cap: float = 15.0) -> float:
    """Seconds to wait before repeating a publish that met no subscriber, after the `attempt`th time.

    Between half of `most` and `most`, since the server is likely to be on its way back. The bound doubles
    from the fifth attempt on, up to `cap`: devices that all ask every second only keep the broker busy.
    `chance` is drawn from 0 to 1.
    """
    bound = min(max(cap, most), most * 2.0 ** min(max(attempt - 4, 0), 30))
    return bound * (0.5 + 0.5 * chance)
