"""All kinds of faults."""

from tests.verification.chaos.clock_faults import ClockStep
from tests.verification.chaos.data_faults import BackupRestore, BrokerStateLoss, RedisFlush
from tests.verification.chaos.faults import Fault
from tests.verification.chaos.network_faults import CONNECTIONS, NETWORK_FAULTS, NetworkFault
from tests.verification.chaos.process_faults import Kill, Pause, PauseUntilTakeover, WorkerJoin, WorkerLeave
from tests.verification.chaos.resource_faults import FullDeviceDisk, FullDisk, FullQueues, FullReads, Replay
from tests.verification.chaos.session_faults import Rival

PARTS = ("worker", "broker", "redis", "store", "device")

KINDS: dict[str, type[Fault]] = {
    **{f"kill {part}": Kill for part in PARTS},
    **{f"pause {part}": Pause for part in PARTS},
    "sleeping worker": PauseUntilTakeover,
    "leave worker": WorkerLeave,
    "join worker": WorkerJoin,
    "wipe broker": BrokerStateLoss,
    "old broker": BrokerStateLoss,
    "flush redis": RedisFlush,
    "restore backup": BackupRestore,
    **{f"{how} {between}": NetworkFault for how in NETWORK_FAULTS for between in CONNECTIONS},
    "clock ahead": ClockStep,
    "clock behind": ClockStep,
    "clock hour ahead": ClockStep,
    "clock hour behind": ClockStep,
    "rival": Rival,
    "clean rival": Rival,
    "full disk": FullDisk,
    "full device disk": FullDeviceDisk,
    "full queues": FullQueues,
    "full reads": FullReads,
    "replay": Replay,
}
