"""The losses of a run's validations, and the best checkpoint: the one with the lowest validation loss.

Rank 0 records the step and the loss of each validation in RUN/validations.json as soon as the loss is known. The best
checkpoint has the lowest recorded loss among the checkpoints that exist and have no `fault`. If a run is killed after a
validation and before it has saved the validated weights, the record contains a step without a checkpoint. Such a step
is ignored. RUN/checkpoints/best is a symbolic link to the best checkpoint, for users and for paths such as `--init
RUN/checkpoints/best`. The program never reads the link to find out which checkpoint is the best.

When a run resumes, it removes the losses of later steps from the record, because these steps will be repeated. It also
removes losses that were measured on other data or on another number of rows, because such losses cannot be compared.
"""

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rwkv_music.checkpoint.run_folder import CHECKPOINTS, checkpoint_name, fault, find_checkpoint
from rwkv_music.errors import UserError, plural
from rwkv_music.files import check_types, read_json, sync_folder, write_text

VALIDATIONS = "validations.json"
BEST = "best"  # the name of the link, and the value of `which` that selects the best checkpoint
LAST = "last"


@dataclass(frozen=True)
class Validated:
    """The loss of one validation."""

    step: int
    loss: float  # nats per token; it may be infinite or NaN
    extra: bool  # whether its checkpoint was saved only as the best one; it is deleted when another becomes the best


class Validations:
    """The validations of a run, in the order of their steps. `measured_on` identifies the data and the rows."""

    def __init__(self, run: Path, measured_on: str = "", entries: tuple[Validated, ...] = ()) -> None:
        self._run, self.measured_on, self.entries = run, measured_on, entries

    @staticmethod
    def read(run: Path) -> "Validations":
        """Read the validations of a run. Without a file there are none. Raises UserError if the file is damaged."""
        path = run / VALIDATIONS
        if not path.exists():
            return Validations(run)
        remedy = "restore it from a copy, or delete it (the last checkpoint then counts as the best)"
        tree = read_json(path, remedy, {"measured_on": str, "validations": list})
        try:
            for entry in tree["validations"]:
                check_types(entry, {"step": int, "loss": float, "extra": bool})
            entries = tuple(Validated(**entry) for entry in tree["validations"])
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): {remedy}.") from error
        return Validations(run, tree["measured_on"], entries)

    def resume(self, step: int, measured_on: str) -> None:
        """Remove the losses after `step`, or all losses if they were not measured on `measured_on`."""
        same = measured_on == self.measured_on
        kept = tuple(entry for entry in self.entries if same and entry.step <= step)
        self.measured_on = measured_on
        if kept != self.entries:
            self.entries = kept
            self._write()

    def add(self, step: int, loss: float, saved: bool) -> None:
        """Record the loss at `step`. `saved` is whether the step had a checkpoint before its loss was known."""
        lowest = self.lowest()
        better = math.isfinite(loss) and (lowest is None or loss < lowest.loss)
        self.entries = (*(e for e in self.entries if e.step < step), Validated(step, loss, better and not saved))
        self._write()

    def contains(self, step: int) -> bool:
        return any(entry.step == step for entry in self.entries)

    @property
    def without_improvement(self) -> int:
        """The number of validations since the one with the lowest loss, or of all validations if no loss is finite."""
        lowest = self.lowest()
        return sum(lowest is None or entry.step > lowest.step for entry in self.entries)

    def best(self) -> Validated | None:
        """Return the validation with the lowest loss among those whose checkpoint exists and has no `fault`."""
        by_loss = sorted((e for e in self.entries if math.isfinite(e.loss)), key=lambda entry: (entry.loss, entry.step))
        return next((entry for entry in by_loss if fault(self.checkpoint(entry)) is None), None)

    def superseded(self) -> list[Path]:
        """Return the checkpoints that were saved only because they were the best, and are no longer the best."""
        best = self.best()
        worse = (entry for entry in self.entries if best and not entry.loss <= best.loss)
        former = (self.checkpoint(entry) for entry in worse if entry.extra)
        return [path for path in former if path.is_dir()]

    def link_best(self) -> None:
        """Point the link at the best checkpoint, atomically. Do nothing if the file system has no symbolic links."""
        best, link = self.best(), self._run / CHECKPOINTS / BEST
        target = best and checkpoint_name(best.step)
        with contextlib.suppress(OSError):
            if target is None:
                link.unlink(missing_ok=True)
            elif not link.is_symlink() or os.readlink(link) != target:
                partial = link.with_name(f".{BEST}.partial")
                partial.unlink(missing_ok=True)
                partial.symlink_to(target)
                os.replace(partial, link)

    def checkpoint(self, entry: Validated) -> Path:
        return self._run / CHECKPOINTS / checkpoint_name(entry.step)

    def lowest(self) -> Validated | None:
        """Return the first validation with the lowest loss, whether or not its weights are saved."""
        finite = (entry for entry in self.entries if math.isfinite(entry.loss))
        return min(finite, key=lambda entry: entry.loss, default=None)

    def _write(self) -> None:
        tree = {"measured_on": self.measured_on, "validations": [asdict(entry) for entry in self.entries]}
        write_text(self._run / VALIDATIONS, json.dumps(tree) + "\n")
        sync_folder(self._run)


def choose_checkpoint(run: Path, which: str = BEST) -> tuple[Path | None, str]:
    """Return a checkpoint of a run, and a clause that explains the choice, "" if there was no choice.

    `which` is "best", "last" or a step. In a run without validations, the last checkpoint counts as the best one. If
    the run has no checkpoints and `which` is not a step, return None and "". Raises UserError if the record of the
    validations is damaged, if the run has no checkpoint of the given step, or if all its checkpoints are damaged.
    """
    if which.isdecimal():
        chosen = run / CHECKPOINTS / checkpoint_name(int(which))
        if not chosen.is_dir():
            raise UserError(f"{run} has no checkpoint of step {int(which):,}: choose one of those in {chosen.parent}.")
        return chosen, "chosen with --checkpoint"
    last = find_checkpoint(run)
    if last is None:
        return None, ""
    validations = Validations.read(run) if which == BEST else Validations(run)
    best = validations.best()
    if best is None:
        return last, "" if which == BEST else "the last one"
    chosen = validations.checkpoint(best)
    reason = f"the best of {plural(len(validations.entries), 'validation')}, {best.loss:.4f} nats per token"
    if chosen != last:
        reason += f"; the last is {last.name}"
    lowest = validations.lowest()
    if lowest != best:
        lost = validations.checkpoint(lowest)
        reason += f"; {lost.name} has a lower loss, but cannot be used: {fault(lost)}"
    return chosen, reason
