"""Where the ranks meet: a store that rank 0 serves on the job's own interface, and the process group over it.

torch's own rendezvous listens on every interface of rank 0's machine, and gloo takes the interface that the machine's
name resolves to, which on many is the loopback one. Here both use the one from which the job's address is reached.
"""

import datetime
import fcntl
import os
import socket
import struct
import tempfile
from pathlib import Path

from deepspeed.accelerator import get_accelerator
from torch import distributed as dist

from rwkv_music.errors import UserError

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
PATIENCE_MINUTES = 10  # for the slowest rank to arrive
ENVIRONMENT = {
    # DeepSpeed reads them where nothing started this process as a rank.
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    # torch's compiler puts it there when DeepSpeed first names a function for it, which every engine does.
    "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"),
    # DeepSpeed sets and removes it when it loads a kernel, unless it is there; empty means the same as none.
    "TORCH_CUDA_ARCH_LIST": "",
    # When a rank dies, NCCL's watchdog on the others sleeps for four times this before it ends them, so that a record
    # of the collectives can be written: a minute by torch's default. A process group reads it when it is made.
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "2000",
}


def meet(collective_minutes: float) -> dist.Store:
    """Join the ranks that a launcher named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them, be alone.

    Args:
        collective_minutes: after this long a collective that not all ranks take part in is an error.

    Returns the store, through which ranks may tell each other more. Raises UserError if there is no meeting.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(
            f"WORLD_SIZE is {world_size}, but MASTER_ADDR and MASTER_PORT do not say where the ranks meet: set them, "
            f"or start with launch/workstation.sh, launch/slurm.sh or deepspeed, which do."
        )
    # All that a run puts into the environment, which NCCL's threads read from when the process group is made on: glibc
    # moves it when it grows, and who reads it just then ends the process with a segmentation fault.
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    store = dist.HashStore() if world_size == 1 else _store(rank, world_size)
    dist.init_process_group(
        get_accelerator().communication_backend_name(),
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(minutes=collective_minutes),
    )
    return store


def _store(rank: int, world_size: int) -> dist.TCPStore:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        address = socket.gethostbyname(host)
        listener = _listen(address, port) if rank == 0 else None
        interface = interface_towards(address)
    except OSError as error:
        raise UserError(
            f"Rank {rank} cannot meet the others at {host}:{port} ({error.strerror}): "
            f"set MASTER_ADDR and MASTER_PORT to an address of rank 0's machine and a free port there."
        ) from error
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        return dist.TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0,
            timeout=datetime.timedelta(minutes=PATIENCE_MINUTES),
            master_listen_fd=listener.detach() if listener else None,
        )
    except (dist.DistError, RuntimeError) as error:
        raise UserError(
            f"Rank {rank} waited {PATIENCE_MINUTES} minutes at {host}:{port} and not all {world_size} ranks came: "
            f"look for what the others say, and whether this machine reaches that address."
        ) from error


def _listen(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(1024)
    return listener


def interface_towards(address: str) -> str | None:
    """The name of the network interface from which `address` is reached; None if it cannot be told."""
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
    """Whether all ranks of the process group run on one machine."""
    hosts = [socket.gethostname()] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return len(set(hosts)) == 1


def is_loss_of_a_rank(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone or does not come."""
    words = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting", "Socket closed")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
