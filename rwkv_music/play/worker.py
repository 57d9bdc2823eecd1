"""The thread in which the models run, and the queue of requests for it."""

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Callable

from rwkv_music.errors import UserError
from rwkv_music.play.writing import Cancelled

MOST_WAITING = 64
IDLE_S = 2.0  # time between two calls of `idle` while no job is waiting


class QueueFull(UserError):
    """An error for a full queue."""


class Job:
    """A request in the queue. Its `events` are dictionaries for the page, followed by None at the end."""

    def __init__(self, work: Callable[["Job"], dict]):
        self.events: asyncio.Queue[dict | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        self._cancelled.set()

    def send(self, event: dict | None) -> None:
        """Add an event, from any thread."""
        if not self.is_cancelled:
            try:
                self._loop.call_soon_threadsafe(self.events.put_nowait, event)
            except RuntimeError:  # the server has stopped
                self.cancel()

    def run(self) -> None:
        """Do the work, and send the result or the error as an event."""
        try:
            self.send({"position": 0})
            self.send({"done": self._work(self)})
        except Cancelled:
            pass
        except UserError as error:
            self.send({"error": str(error)})
        except Exception:
            traceback.print_exc()
            cause = "an error in the program: see the terminal of the server"
            self.send({"error": f"The model could not write this because of {cause}."})
        self.send(None)


class Worker:
    """A thread that runs jobs in the order of `submit`.

    It calls `idle` before each job and, while no job is waiting, every IDLE_S seconds.
    """

    def __init__(self, idle: Callable[[], None] = lambda: None):
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._idle = idle
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def n_jobs(self) -> int:
        """The number of jobs that are waiting or running."""
        return len(self._waiting) + (self._running is not None)

    def submit(self, job: Job) -> None:
        """Add a job to the queue. Raises QueueFull if MOST_WAITING jobs are waiting."""
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise QueueFull(f"{MOST_WAITING} requests are waiting already: try again in a while.")
            self._waiting.append(job)
            self._send_positions()
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a job: remove it from the queue, or, if it is running, end it after its next token."""
        job.cancel()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._send_positions()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            for job in (*self._waiting, *([self._running] if self._running else [])):
                job.send(None)
                job.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout=10)

    def _send_positions(self) -> None:
        for place, job in enumerate(self._waiting, start=int(self._running is not None)):
            job.send({"position": place})

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._stopped:
                    self._changed.wait(IDLE_S)
                if self._stopped:
                    return
                job = self._running = self._waiting.popleft() if self._waiting else None
            try:
                self._idle()
            except Exception:  # the thread continues
                traceback.print_exc()
            if job is not None:
                job.run()
            with self._changed:
                self._running = None
                self._send_positions()
