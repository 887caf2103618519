"""Network faults on the connections between two parts."""

from collections.abc import Collection

from tests.verification.chaos.faults import Fault, NotFired, Shape, wait_for_effect

NETWORK_FAULTS = ("cut", "slow", "stall", "swallow")
CONNECTIONS = ("worker-broker", "worker-store", "worker-redis", "device-broker")


class NetworkFault(Fault):
    """`cut`: no connection. `slow`: each byte is delayed. `stall`: connections stay open and pass nothing.

    `swallow`: requests pass, answers are dropped, and the connection is reset: a cut between a commit and its
    answer. Repaired by a proxy that passes everything again.
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
        # A cut shows at once; the other faults need traffic on the connection.
        near, _ = target.split(">")
        return {near} if kind.startswith("cut") else {near, "broker", "store", "redis"}

    async def fire(self) -> str:
        proxy = self.stack.proxies[self.target]
        how = self.kind.split()[0]
        if how == "cut":
            effect = proxy.cut()
        elif how == "slow":
            effect = proxy.slow(self.rng.uniform(0.1, 0.8), self.rng.choice((0, 0, 20_000)))
        elif how == "stall":
            effect = proxy.stall()
        else:
            effect = proxy.swallow()
        try:
            await wait_for_effect(lambda: bool(effect), f"{self.kind} of {self.target} affecting traffic")
        except AssertionError as error:
            proxy.repair()
            raise NotFired(str(error)) from error
        return f"{effect.connections} connections, {effect.bytes} bytes"

    async def repair(self) -> str:
        effect = self.stack.proxies[self.target].repair()
        return f"{effect.connections} connections, {effect.bytes} bytes in all" if effect else ""
