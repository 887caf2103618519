"""Every kind of fault that there is."""

from tests.verification.chaos.clocks import Step
from tests.verification.chaos.faults import Fault
from tests.verification.chaos.forgetting import Amnesia, Flush, Restore
from tests.verification.chaos.killing import Join, Kill, Leave, Pause, Sleep
from tests.verification.chaos.limits import FullDeviceDisk, FullDisk, FullQueues, FullReads, Replay
from tests.verification.chaos.rivals import Rival
from tests.verification.chaos.wires import BETWEEN, HOW, Wire

PARTS = ("worker", "broker", "redis", "store", "device")

KINDS: dict[str, type[Fault]] = {
    **{f"kill {part}": Kill for part in PARTS},
    **{f"pause {part}": Pause for part in PARTS},
    "sleeping worker": Sleep,
    "leave worker": Leave,
    "join worker": Join,
    "wipe broker": Amnesia,
    "old broker": Amnesia,
    "flush redis": Flush,
    "restore backup": Restore,
    **{f"{how} {between}": Wire for how in HOW for between in BETWEEN},
    "clock ahead": Step,
    "clock behind": Step,
    "clock hour ahead": Step,
    "clock hour behind": Step,
    "rival": Rival,
    "clean rival": Rival,
    "full disk": FullDisk,
    "full device disk": FullDeviceDisk,
    "full queues": FullQueues,
    "full reads": FullReads,
    "replay": Replay,
}
