"""Start this machine's ranks of a run that goes on when machines are lost and takes them back when they return.

    python launch/elastic.py MACHINES RANKS train.py ARGUMENTS...

Started on each machine: NODES is how many there are, MACHINES the fewest with which to go on, MASTER_ADDR and
MASTER_PORT where they meet; NODE_RANK 0 keeps that place, and when it is lost the run ends there, to be started again.

Who takes part is agreed on by torch's rendezvous. When a machine is lost, its ranks take the others' with them; the
machines that are left meet again and start theirs from the last checkpoint. When one returns, the ranks save and stop,
and all meet. CRASHES crashes (3) in which the run got no further than its last checkpoint end it.

Notable choices:
- Of torch's elastic launcher this is the rendezvous alone. Its agent kills ranks half a minute after it has asked them
  to stop, checkpoint or none, and takes a stop with a checkpoint for a failure.
- A machine is missed when it has given no sign of life for 10 seconds.

Exit status: 0 the run is finished; 75 this machine was asked to stop, 130 by Ctrl-C, with a checkpoint; 70 the meeting
place is lost, or too few machines came; else that of the rank that ended badly first.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from node import SIGNALS, attend, pass_on, start

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # a machine that is lost is told here, not by the stacks of its sockets
from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousHandler,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

del os.environ["TORCH_CPP_LOG_LEVEL"]  # which is the ranks' own

RUN = "rwkv-music"
TOLD, INTERRUPTED, GO_ON_LATER, CRASHED = (1, 2), 130, 75, 70  # statuses, as in rwkv_music/training/signals.py
SIGN_OF_LIFE_SECONDS, SIGNS_MISSED = 2, 5
LATECOMERS_SECONDS = 10  # how long those who are enough wait for more: longer than ranks take to notice a loss
LOOK_SECONDS = 1.0  # between two looks for who has come back
FAREWELL_SECONDS = 3  # that the meeting place stays open for those who wait, so that they learn of the end


def main(arguments: list[str]) -> int:
    if len(arguments) < 3 or not arguments[1].isdecimal():
        print(__doc__.strip())
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    machines = int(os.environ.get("NODES", "1"))
    fewest, ranks, command = arguments[0], int(arguments[1]), arguments[2:]
    if not (fewest.isdecimal() and 1 <= int(fewest) <= machines):
        sys.exit(f"launch/elastic.py: --elastic {fewest}: give a number of machines from 1 to {machines} (NODES).")
    least = int(fewest)
    processes: list[subprocess.Popen] = []
    asked: list[int] = []  # the signals that this machine was sent

    def stop(number: int, _frame: object) -> None:
        asked.append(number)
        pass_on(number, processes)
        if all(process.poll() is not None for process in processes):  # it waits for others
            sys.exit(INTERRUPTED if number == signal.SIGINT else GO_ON_LATER)

    for number in SIGNALS:
        signal.signal(number, stop)
    crashes = Crashes(run_folder(command))
    try:
        rendezvous = open_rendezvous(least, most=machines)
        while True:
            place = rendezvous.next_rendezvous()
            master = place.bootstrap_store_info
            say(f"{place.world_size} machines meet; this one is number {place.rank}")
            processes[:] = start(
                command,
                ranks,
                first_rank=place.rank * ranks,
                world_size=place.world_size * ranks,
                MASTER_ADDR=master.master_addr,
                MASTER_PORT=str(master.master_port),
            )
            status = attend(processes, Newcomers(rendezvous, processes))
            if asked:
                return status
            if status in (0, *TOLD):
                return end_for_all(rendezvous, status)
            if status not in (GO_ON_LATER, INTERRUPTED) and not crashes.forgive():
                say(f"{crashes.count} crashes (status {status}) with no checkpoint between them: look for their cause")
                return end_for_all(rendezvous, status)
    except RendezvousClosedError:
        return 0  # the others have ended; what there is to say they have said
    except RendezvousTimeoutError:
        say(f"fewer than {least} machines came")
        return CRASHED
    except RendezvousError as error:
        say(f"the meeting place is lost ({error})")
        return CRASHED


def open_rendezvous(least: int, most: int) -> RendezvousHandler:
    """The agreement on who takes part, kept by the machine that is NODE_RANK 0, on the job's interface alone."""
    host, port = socket.gethostbyname(os.environ["MASTER_ADDR"]), int(os.environ["MASTER_PORT"])
    listener = socket.create_server((host, port)) if keeps_the_place() else None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        own = probe.getsockname()[0]
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
        raise RendezvousError(f"nobody answers at {host}:{port}") from error
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # the ranks meet at a port of their own
    return DynamicRendezvousHandler.from_backend(
        RUN,
        store,
        C10dRendezvousBackend(store, RUN),
        least,
        most,
        local_addr=own,
        timeout=RendezvousTimeout(last_call=timedelta(seconds=LATECOMERS_SECONDS)),
        keep_alive_interval=SIGN_OF_LIFE_SECONDS,
        keep_alive_max_attempt=SIGNS_MISSED,
    )


def end_for_all(rendezvous: RendezvousHandler, status: int) -> int:
    """Nobody meets any more; `status`."""
    with contextlib.suppress(RendezvousError):  # who keeps the meeting place has ended before
        rendezvous.set_closed()
        if keeps_the_place():
            time.sleep(FAREWELL_SECONDS)
    return status


def keeps_the_place() -> bool:
    return os.environ.get("NODE_RANK", "0") == "0"


class Newcomers:
    """Looks whether a machine waits to take part, and has the ranks save and stop if one does."""

    def __init__(self, rendezvous: RendezvousHandler, processes: list[subprocess.Popen]) -> None:
        self._rendezvous, self._processes, self._looked = rendezvous, processes, time.monotonic()
        self._told = False

    def __call__(self) -> None:
        if self._told or time.monotonic() < self._looked + LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        try:
            self._told = self._rendezvous.num_nodes_waiting() > 0
        except RendezvousError:  # the meeting place is lost: its ranks too, which ours will notice
            return
        if self._told:
            say("a machine has come: the ranks save and stop, and all meet")
            pass_on(signal.SIGTERM, self._processes)


class Crashes:
    """Counts those in which the run got no further than the last checkpoint."""

    def __init__(self, run: Path) -> None:
        self._run, self.count = run, 0
        self._from = self._last_checkpoint()

    def forgive(self) -> bool:
        """Whether to go on after one more."""
        last = self._last_checkpoint()
        self.count = self.count + 1 if last == self._from else 1
        self._from = last
        return self.count < int(os.environ.get("CRASHES", "3"))

    def _last_checkpoint(self) -> str:
        """The one written last: a damaged one of a later step may be there."""
        found = [(0.0, "")]
        for path in self._run.glob("checkpoints/step_*"):
            with contextlib.suppress(FileNotFoundError):  # one that is being deleted
                found.append((path.stat().st_mtime, path.name))
        return max(found)[1]


def run_folder(command: list[str]) -> Path:
    """What `--out` names in a command line of train.py."""
    for argument, following in zip(command, [*command[1:], ""], strict=True):
        if found := re.match("--out(?:=(.*))?$", argument):
            return Path(found[1] or following)
    sys.exit("launch/elastic.py: no --out: name the run folder.")


def say(text: str) -> None:
    print(f"launch/elastic.py: {text}.", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
