"""Network faults on the connections between two parts."""

from collections.abc import Collection

from tests.verification.chaos.faults import Fault, NotFired, Shape, shows

HOW = ("cut", "slow", "stall", "swallow")
BETWEEN = ("worker-broker", "worker-store", "worker-redis", "device-broker")


class Wire(Fault):
    """`cut`: no connection. `slow`: each byte takes its time. `stall`: nothing passes, and nothing ends.

    `swallow`: what is asked for happens, the answer is lost, and the connection is reset: the cut between a
    commit and its answer. Healed by a way on which everything passes again.
    """

    @classmethod
    def targets(cls, kind: str, shape: Shape) -> Collection[str]:
        near, far = kind.split()[1].split("-")
        if shape.stack != "scale" and far in ("store", "redis"):
            return ()
        return [f"{part}>{far}" for part in (shape.workers if near == "worker" else shape.devices)]

    @classmethod
    def breaks(cls, kind: str, target: str) -> set[str]:
        return {target[: target.index(">") + 1]}

    @classmethod
    def needs(cls, kind: str, target: str) -> set[str]:
        # Of a cut it shows at once; for the others something has to be under way.
        near, _ = target.split(">")
        return {near} if kind.startswith("cut") else {near, "broker", "store", "redis"}

    async def fire(self) -> str:
        way = self.stack.ways[self.target]
        how = self.kind.split()[0]
        if how == "cut":
            hit = way.cut()
        elif how == "slow":
            hit = way.slow(self.chance.uniform(0.1, 0.8), self.chance.choice((0, 0, 20_000)))
        elif how == "stall":
            hit = way.stall()
        else:
            hit = way.swallow()
        try:
            await shows(lambda: bool(hit), f"{self.kind} of {self.target}: something on its way")
        except AssertionError as error:
            way.mend()
            raise NotFired(str(error)) from error
        return f"{hit.connections} connections, {hit.bytes} bytes"

    async def heal(self) -> str:
        hit = self.stack.ways[self.target].mend()
        return f"{hit.connections} connections, {hit.bytes} bytes in all" if hit else ""
