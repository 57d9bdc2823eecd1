"""A thread that detects a hanging rank, reports it, and ends the run so that it can restart.

Every rank publishes its current phase, and when the phase started, to the rendezvous store. If a phase of a rank takes
too long, the rank prints its stack traces and a report, and ends its process. The launcher then ends the other ranks.
The rank that reports may only be waiting in a collective for a rank that hangs. The report therefore also names the
ranks that are in an earlier step or phase, and those that no longer publish.
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

HEARTBEAT_SECONDS = 15.0
PHASES = ("reading its rows for", "in", "saving")


@dataclass(frozen=True)
class Activity:
    """The phase of a step that a rank is in."""

    step: int
    phase: int  # an index into PHASES
    since: float  # start of the phase, from time.time()

    def __str__(self) -> str:
        return f"{PHASES[self.phase]} step {self.step:,} for {(time.time() - self.since) / 60:.1f} minutes"


class Watchdog:
    """A context in which a thread limits each phase of this rank to `minutes`, except during pauses. 0: no limit."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, minutes: float) -> None:
        self._rank, self._world_size, self._limit = rank, world_size, 60 * minutes  # limit of a phase; 0: none
        # Use a separate connection, because a main thread that hangs may hold the other one.
        self._store = dist.PrefixStore("watchdog", store.clone())
        self._activity: Activity | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._limit:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def reads(self, step: int) -> None:
        """Record that this rank waits for the rows of `step`."""
        self._activity = Activity(step, 0, time.time())

    def computes(self, step: int) -> None:
        """Record that this rank computes `step`."""
        self._activity = Activity(step, 1, time.time())

    def saves(self, step: int) -> None:
        """Record that this rank saves the checkpoint of `step`."""
        self._activity = Activity(step, 2, time.time())

    def pause(self) -> None:
        """Do not limit the time until the next call of `reads`, `computes` or `saves`."""
        self._activity = None

    def _watch(self) -> None:
        while not self._ended.wait(min(HEARTBEAT_SECONDS, self._limit / 4)):
            activity = self._activity
            overdue = activity and time.time() - activity.since > self._limit
            try:
                self._send(activity)
                if overdue:
                    self._report(activity)
            except RuntimeError:  # rank 0, which usually serves the store, has ended
                if overdue:
                    self._exit(f"rank {self._rank} has been {activity}, and rank 0 has ended")

    def _send(self, activity: Activity | None) -> None:
        sent = None if activity is None else [activity.step, activity.phase, activity.since]
        self._store.set(str(self._rank), json.dumps([time.time(), sent]))

    def _report(self, activity: Activity) -> None:
        others = []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            key = str(rank)
            sent_at, sent = json.loads(self._store.get(key)) if self._store.check([key]) else (0.0, None)
            silent = time.time() - sent_at
            if silent > 3 * HEARTBEAT_SECONDS + self._limit / 4:
                others.append(f"rank {rank} has been silent" + (f" for {silent:.0f} s" if sent_at else ""))
            elif sent and (sent[0], sent[1]) < (activity.step, activity.phase):
                others.append(f"rank {rank} has been {Activity(*sent)}")
        ranks_behind = "; ".join(others) or "no other rank is behind it"
        self._exit(f"rank {self._rank} has been {activity}, longer than --hang_minutes allows; {ranks_behind}")

    def _exit(self, sentence: str) -> None:
        print(f"train.py: {sentence}. Stacks of rank {self._rank}:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(CRASHED)
