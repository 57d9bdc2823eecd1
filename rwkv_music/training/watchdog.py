"""A thread that notices when a rank is stuck, says which one and where, and ends the run so that it can start again.

Every rank tells the others, through the store where they met, what it is doing and since when. One that has been doing
the same thing for too long says so, names the ranks that are behind it or silent, and shows its stacks; then it ends
its process, and the launcher ends the others.

Notable choice: in a collective all wait for one. That one is found by what it does: it has not come to the step yet, or
is not heard of at all.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from dataclasses import dataclass

from torch import distributed as dist

from rwkv_music.training.signals import CRASHED

TELL_SECONDS = 15.0  # between two signs of life


@dataclass(frozen=True)
class Doing:
    """What a rank does, in the order in which ranks do it."""

    step: int
    phase: int  # an index into PHASES
    since: float  # seconds, time.time()


PHASES = ("reading its rows for", "in", "saving")


class Watchdog:
    """Watches this rank from `start` to `stop`, but for the pauses.

    Args:
        store: where the ranks met.
        minutes: how long one phase of a step may take; 0 for ever.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, minutes: float) -> None:
        self._rank, self._world_size, self._limit = rank, world_size, 60 * minutes
        # A connection of its own: the main thread may hold the other one for as long as it hangs.
        own = store.clone() if isinstance(store, dist.TCPStore) else store
        self._store = dist.PrefixStore("watchdog", own)
        self._doing: Doing | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        if self._limit:
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def reads(self, step: int) -> None:
        self._doing = Doing(step, 0, time.time())

    def computes(self, step: int) -> None:
        self._doing = Doing(step, 1, time.time())

    def saves(self, step: int) -> None:
        self._doing = Doing(step, 2, time.time())

    def pause(self) -> None:
        """Until the next sign: what follows may take as long as it does."""
        self._doing = None

    def _watch(self) -> None:
        while not self._ended.wait(min(TELL_SECONDS, self._limit / 4)):
            doing = self._doing
            try:
                self._tell(doing)
                if doing and time.time() - doing.since > self._limit:
                    self._give_up(doing)
            except RuntimeError:  # the store is gone, and with it rank 0: nobody is left to tell
                if doing and time.time() - doing.since > self._limit:
                    self._exit(f"rank {self._rank} has been {_words(doing)}, and rank 0 is gone")

    def _tell(self, doing: Doing | None) -> None:
        said = None if doing is None else [doing.step, doing.phase, doing.since]
        self._store.set(str(self._rank), json.dumps([time.time(), said]))

    def _give_up(self, doing: Doing) -> None:
        others = []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            told, said = json.loads(self._store.get(str(rank))) if self._store.check([str(rank)]) else (0.0, None)
            silent = time.time() - told
            if silent > 3 * TELL_SECONDS + self._limit / 4:
                others.append(f"rank {rank} is silent" + (f" for {silent:.0f} s" if told else ""))
            elif said and (said[0], said[1]) < (doing.step, doing.phase):
                others.append(f"rank {rank} is still {_words(Doing(*said))}")
        culprits = "; ".join(others) or "no other rank is behind it"
        self._exit(f"rank {self._rank} has been {_words(doing)}, longer than --hang_minutes allows; {culprits}")

    def _exit(self, sentence: str) -> None:
        print(f"train.py: {sentence}. Its stacks:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(CRASHED)


def _words(doing: Doing) -> str:
    return f"{PHASES[doing.phase]} step {doing.step:,} for {(time.time() - doing.since) / 60:.1f} minutes"
