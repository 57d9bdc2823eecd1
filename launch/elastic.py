"""Start the ranks of this host in a run that continues when hosts are lost and uses them again when they return.

    python launch/elastic.py MIN_HOSTS RANKS train.py ARGUMENTS...

Run this command on every host. RANKS is the number of ranks per host. MIN_HOSTS is the smallest number of hosts with
which training continues. These environment variables are read: NODES is the number of hosts, NODE_RANK is the number
of this host, and MASTER_ADDR and MASTER_PORT are the address of the rendezvous, which the host with NODE_RANK 0 serves.
If the host with NODE_RANK 0 is lost, the run ends and must be started again.

Through torch's rendezvous, the hosts agree on which of them take part in the run. When a host is lost, the ranks of the
other hosts fail. The remaining hosts then start new ranks, which resume from the last checkpoint. When a host joins,
the ranks save a checkpoint and stop, and all hosts start new ranks together. After CRASHES (default 3) crashes without
a new checkpoint, the run ends.

Notable choices:
- Only the rendezvous of torch's elastic launcher is used, not its agent. When the hosts change, the agent kills ranks
  30 seconds after SIGTERM, even if they are still saving. torchrun's --shutdown-timeout does not change this. The
  agent also treats exit status 75 as a failure.
- A host counts as lost if it has sent no heartbeat for 10 seconds.

Exit status:
  0      the run is finished, or another host has ended it and printed why
  75     this host received SIGTERM or SIGHUP at any time, or SIGUSR1 while its ranks trained or it waited for hosts
  130    this host received Ctrl-C
  1      MIN_HOSTS is not a number from 1 to NODES, or --out is missing
  2      the arguments are wrong, or the address of the rendezvous is missing or wrong
  70     the rendezvous is lost or cannot be served, or too few hosts joined
If a rank fails, the status is that of the rank that failed first, which can also be 1, 2 or 70.
With status 75 or 130, the ranks have saved a checkpoint if training had begun, except after a second Ctrl-C.
"""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from node import USER_ERRORS, Ranks

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # otherwise torch prints the C++ stacks of its sockets if a host is lost
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from rwkv_music.errors import plural
from rwkv_music.training.signals import CRASHED, EXIT_RESUMABLE, INTERRUPTED

del os.environ["TORCH_CPP_LOG_LEVEL"]  # so that it does not affect the ranks

RUN_ID = "rwkv-music"
HEARTBEAT_SECONDS, HEARTBEATS_MISSED = 2, 5
# Time to wait for more hosts after MIN_HOSTS have joined; longer than the ranks need to notice that a host is lost.
LAST_CALL_SECONDS = 10
JOIN_CHECK_SECONDS = 1.0
CLOSING_SECONDS = 3  # host 0 serves the rendezvous this long after the run, so that other hosts see that it is closed

_opened: list[RendezvousHandler] = []  # kept until the process ends; see `run`


def run(arguments: list[str]) -> NoReturn:
    """Run `main` and end the process with its status, at once and with the rendezvous still open.

    Torch's heartbeat thread cannot be stopped safely. If it holds the last reference to the rendezvous, it tries to
    join itself and prints a traceback. If Python shuts down while the thread is inside C++, the process aborts.
    """
    try:
        status = main(arguments)
    except SystemExit as end:
        if not isinstance(end.code, int):  # Python prints the message
            raise
        status = end.code
    sys.stdout.flush()
    os._exit(status)


def main(arguments: list[str]) -> int:
    if len(arguments) < 3 or not arguments[1].isdecimal():
        print(__doc__.strip())
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    hosts = int(os.environ.get("NODES", "1"))
    minimum, count, command = arguments[0], int(arguments[1]), arguments[2:]
    if not (minimum.isdecimal() and 1 <= int(minimum) <= hosts):
        sys.exit(f"launch/elastic.py: --elastic {minimum} must be a number of hosts from 1 to {hosts} (NODES).")
    min_hosts = int(minimum)
    ranks = Ranks()
    crashes = CrashCounter(run_folder(command))
    try:
        with ranks.interruptible():
            rendezvous = open_rendezvous(min_hosts, max_hosts=hosts)
        while True:
            with ranks.interruptible():
                members = rendezvous.next_rendezvous()
            master = members.bootstrap_store_info
            log(f"{plural(members.world_size, 'host')} joined; this is host {members.rank}")
            ranks.start(
                command,
                count,
                first_rank=members.rank * count,
                world_size=members.world_size * count,
                MASTER_ADDR=master.master_addr,
                MASTER_PORT=str(master.master_port),
            )
            status = ranks.wait(StopOnJoin(rendezvous, ranks))
            if ranks.received:
                return status
            if status in (0, *USER_ERRORS):
                return close(rendezvous, status)
            if status not in (EXIT_RESUMABLE, INTERRUPTED) and not crashes.record():
                times = plural(crashes.count, "time")
                log(f"the run crashed {times} (status {status}) without a new checkpoint; see the errors above")
                return close(rendezvous, status)
    except RendezvousClosedError:
        return 0  # the other hosts have ended the run and reported why
    except RendezvousTimeoutError:
        log(f"fewer than {min_hosts} hosts joined in time: start this command on more hosts, or lower --elastic")
        return CRASHED
    except RendezvousError as error:
        log(f"the rendezvous is lost ({error}): check the host with NODE_RANK 0, then rerun this command on every host")
        return CRASHED


def open_rendezvous(min_hosts: int, max_hosts: int) -> RendezvousHandler:
    """Connect to the rendezvous. Host 0 also serves it, only on the interface of MASTER_ADDR.

    Raises RendezvousError if the rendezvous does not answer, and SystemExit if this host cannot use the address.
    """
    host, port = rendezvous_address()
    try:
        listener = socket.create_server((host, port)) if serves_rendezvous() else None
    except OSError as error:
        log(
            f"this host cannot serve the rendezvous at {host}:{port} ({error.strerror}): check that MASTER_ADDR is an "
            "address of the host with NODE_RANK 0, or set MASTER_PORT to a free port, the same one on every host"
        )
        sys.exit(CRASHED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing; selects the interface that reaches `host`
        own_address = probe.getsockname()[0]
    try:
        store = TCPStore(
            host,
            port,
            is_master=listener is not None,
            master_listen_fd=listener.detach() if listener else None,
            timeout=timedelta(minutes=5),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise RendezvousError(f"no answer from {host}:{port}") from error
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # the ranks' process group uses its own port
    rendezvous = DynamicRendezvousHandler.from_backend(
        RUN_ID,
        store,
        C10dRendezvousBackend(store, RUN_ID),
        min_hosts,
        max_hosts,
        local_addr=own_address,
        timeout=RendezvousTimeout(last_call=timedelta(seconds=LAST_CALL_SECONDS)),
        keep_alive_interval=HEARTBEAT_SECONDS,
        keep_alive_max_attempt=HEARTBEATS_MISSED,
    )
    _opened.append(rendezvous)
    return rendezvous


def rendezvous_address() -> tuple[str, int]:
    """Return the IPv4 address and the port of the rendezvous. Raises SystemExit if they are missing or wrong."""
    name, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not (name and port.isdecimal() and 0 < int(port) < 1 << 16):
        log(
            "MASTER_ADDR or MASTER_PORT is missing or invalid: set them to an address of the host with NODE_RANK 0 and "
            "to a free port there, or start with launch/workstation.sh or launch/slurm.sh"
        )
        sys.exit(2)
    try:
        return socket.gethostbyname(name), int(port)
    except (OSError, UnicodeError):
        log(f"MASTER_ADDR {name} is not a known host: set it to an address of the host with NODE_RANK 0")
        sys.exit(2)


def close(rendezvous: RendezvousHandler, status: int) -> int:
    """End the run on all hosts and return `status`."""
    with contextlib.suppress(RendezvousError):  # host 0 has ended already
        rendezvous.set_closed()
        if serves_rendezvous():
            time.sleep(CLOSING_SECONDS)
    return status


def serves_rendezvous() -> bool:
    return os.environ.get("NODE_RANK", "0") == "0"


class StopOnJoin:
    """A callback for `Ranks.wait` that makes the ranks save a checkpoint and stop when another host waits to join."""

    def __init__(self, rendezvous: RendezvousHandler, ranks: Ranks) -> None:
        self._rendezvous, self._ranks, self._checked_at = rendezvous, ranks, time.monotonic()
        self._stopping = False

    def __call__(self) -> None:
        if self._stopping or time.monotonic() < self._checked_at + JOIN_CHECK_SECONDS:
            return
        self._checked_at = time.monotonic()
        try:
            self._stopping = self._rendezvous.num_nodes_waiting() > 0
        except RendezvousError:  # host 0 and its ranks are lost, so this host's ranks fail in their next collective
            return
        if self._stopping:
            log("another host waits to join: the ranks save a checkpoint and stop, then all hosts start again")
            self._ranks.send(signal.SIGTERM)


class CrashCounter:
    """A count of successive crashes without a new checkpoint in the run folder."""

    def __init__(self, run: Path) -> None:
        self._run, self.count = run, 0
        self._started_from = self._newest_checkpoint()

    def record(self) -> bool:
        """Count one crash. Return whether the count is below the limit, so that the run may restart."""
        newest = self._newest_checkpoint()
        self.count = self.count + 1 if newest == self._started_from else 1
        self._started_from = newest
        return self.count < int(os.environ.get("CRASHES", "3"))

    def _newest_checkpoint(self) -> str:
        """Return the name of the most recently written checkpoint.

        The checkpoint of the highest step may be another one, which is older and damaged.
        """
        found = [(0.0, "")]
        for path in self._run.glob("checkpoints/step_*"):
            with contextlib.suppress(FileNotFoundError):  # the checkpoint is being deleted
                found.append((path.stat().st_mtime, path.name))
        return max(found)[1]


def run_folder(command: list[str]) -> Path:
    """Return the value of `--out` in a train.py command line."""
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        if found := re.match("--out(?:=(.*))?$", argument):
            return Path(found[1] or following)
    sys.exit("launch/elastic.py: --out is missing; give the run folder.")


def log(text: str) -> None:
    print(f"launch/elastic.py: {text}.", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(sys.argv[1:])
