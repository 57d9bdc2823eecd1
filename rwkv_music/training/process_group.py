"""The process group, its rendezvous store (usually served by rank 0), and the network interface that both use.

By default, torch's rendezvous listens on every interface of rank 0's host, and gloo uses the interface to which the
host's name resolves, which is often the loopback interface. Here the store and gloo use the interface through which
MASTER_ADDR is reached.
"""

import datetime
import fcntl
import os
import socket
import struct
import tempfile
import time
from pathlib import Path

from torch import distributed as dist

from rwkv_music.errors import SharedError, UserError

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
MEETING_MINUTES = 10  # time within which all ranks must join
SHARING_SECONDS = 20  # time within which the other ranks must receive the error of a rank that cannot join
ENVIRONMENT = {
    # DeepSpeed reads these variables even if no launcher started this process.
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    # Every DeepSpeed engine registers a function with torch's compiler, which sets this variable if it is missing.
    "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"),
    # DeepSpeed would set and remove this variable when it loads a kernel. Empty means the same as unset.
    "TORCH_CUDA_ARCH_LIST": "",
    # When a rank dies, the NCCL watchdog of every other rank waits for a dump of the collectives before it ends the
    # process. It waits four times this number of milliseconds, by default a minute in all.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "2000",
}


def init_process_group(backend: str, collective_minutes: float) -> dist.Store:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; return the rendezvous store.

    Without these variables, the group consists of this process. A collective that some rank does not join times out
    after `collective_minutes`. Raises UserError if the ranks cannot connect. Raises SharedError if another rank has
    reported with `share_error` that it cannot start.
    """
    rank, world_size = _rank_and_world_size()
    # Everything that a run adds to the environment is added here, before the process group starts NCCL's threads. These
    # threads read the environment, and glibc moves it when it grows. A read at that moment could crash the process.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    store = dist.HashStore() if world_size == 1 else _meet(rank, world_size)
    dist.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(minutes=collective_minutes),
    )
    return store


def consecutive_ranks(ranks: int, collective_minutes: float) -> dist.ProcessGroup | None:
    """Divide all ranks into groups of `ranks` consecutive ranks. Return this rank's group, or None if `ranks` is 1.

    Collective. `collective_minutes` is as in `init_process_group`.
    """
    if ranks == 1:
        return None
    timeout = datetime.timedelta(minutes=collective_minutes)
    first = [range(start, start + ranks) for start in range(0, dist.get_world_size(), ranks)]
    groups = [dist.new_group(list(members), timeout) for members in first]  # every rank must create all groups
    return groups[dist.get_rank() // ranks]


def share_error(message: str) -> bool:
    """Report to the other ranks that this rank cannot start: their `init_process_group` raises SharedError(`message`).

    Return whether the message reached the store within `SHARING_SECONDS`. If it did, rank 0 prints it.
    """
    try:
        rank, world_size = _rank_and_world_size()
        if world_size == 1:
            return False
        store = _store(rank, world_size, SHARING_SECONDS)
        store.set("error", message)
        store.set("met", "")
        _wait_until_read(store, rank, world_size)
    except (UserError, dist.DistError, RuntimeError):
        return False
    return True


def _rank_and_world_size() -> tuple[int, int]:
    """Return this rank's number and the number of ranks. Raises UserError if the rendezvous address is not set."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(
            f"WORLD_SIZE is {world_size}, but MASTER_ADDR and MASTER_PORT are not both set: set them, or start with "
            f"launch/workstation.sh, launch/slurm.sh or deepspeed, which do."
        )
    return rank, world_size


def _meet(rank: int, world_size: int) -> dist.Store:
    """Return the rendezvous store after all ranks have connected to it. Raises as `init_process_group` does."""
    store = _store(rank, world_size, 60 * MEETING_MINUTES)
    try:
        if store.add("joined", 1) == world_size:
            store.set("met", "")
        store.wait(["met"])
    except (dist.DistError, RuntimeError) as error:
        raise _not_met(rank, world_size) from error
    if store.check(["error"]):
        message = store.get("error").decode()
        _wait_until_read(store, rank, world_size)
        raise SharedError(message)
    return store


def _wait_until_read(store: dist.Store, rank: int, world_size: int) -> None:
    """Record that this rank has read the error. Rank 0, which usually serves the store, waits until all have read it.

    It waits for at most `SHARING_SECONDS`.
    """
    n_read = store.add("read", 1)
    deadline = time.monotonic() + SHARING_SECONDS
    while rank == 0 and n_read < world_size and time.monotonic() < deadline:
        time.sleep(0.1)
        n_read = store.add("read", 0)


def _not_met(rank: int, world_size: int) -> UserError:
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return UserError(
        f"Rank {rank} did not meet all {world_size} ranks at {host}:{port} (time limit: {MEETING_MINUTES} minutes): "
        f"check the output of the other ranks, and whether this host can reach that address."
    )


def _store(rank: int, world_size: int, seconds: float) -> dist.Store:
    """Connect to the store of this run. Connecting, and each wait for a key, may take at most `seconds`.

    If torchrun started the ranks, torchrun serves the store and keeps it across restarts. Otherwise rank 0 serves it.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = rank == 0 and not of_torchrun
    try:
        address = socket.gethostbyname(host)
        listener = _listen(address, port) if serves else None
        interface = interface_towards(address)
    except OSError as error:
        raise UserError(
            f"Rank {rank} cannot connect to {host}:{port} ({error.strerror}): set MASTER_ADDR and MASTER_PORT to an "
            f"address of rank 0's host and a free port there."
        ) from error
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        store = dist.TCPStore(
            address,
            port,
            world_size,
            is_master=serves,
            timeout=datetime.timedelta(seconds=seconds),
            wait_for_workers=False,
            master_listen_fd=listener.detach() if listener else None,
        )
    except (dist.DistError, RuntimeError) as error:
        raise _not_met(rank, world_size) from error
    return dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", store) if of_torchrun else store


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(1024)
    return listener


def interface_towards(address: str) -> str | None:
    """Return the name of the network interface through which `address` is reached; None if it cannot be determined."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing: a datagram socket only looks up the route
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # an interface without an IPv4 address
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    return None


def ranks_share_a_host() -> bool:
    """Return whether all ranks of the process group run on one host. Collective."""
    hosts = [socket.gethostname()] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return len(set(hosts)) == 1


def is_loss_of_a_rank(error: BaseException) -> bool:
    """Return whether the process group raised this error because another rank was lost or did not join."""
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo/transport" in str(error))
