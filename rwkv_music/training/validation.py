"""Validation during training: the loss on the validation split, for the tasks that the run trains for."""

import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import distributed as dist

from rwkv_music.config import RunConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import Batch, MusicDataset, read_dataset_json
from rwkv_music.data.ngrams import ngram_nats_per_token
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.evaluation.losses import Through, summed_loss, summed_loss_of_streams
from rwkv_music.files import file_sha256
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.deepspeed_engine.engine import Engine


class Validation:
    """The validation split of a run's data, read as document streams if the run trains with `tbptt`."""

    def __init__(self, config: RunConfig, plan: BatchPlan) -> None:
        self._config, self._plan = config, plan
        self.data = MusicDataset.of(config.data, "val")
        # Identifies the split and the rows, because losses on others cannot be compared.
        self.measured_on = f"{file_sha256(Path(config.data.data) / 'dataset.json')}, rows {config.train.val_rows}"
        if config.data.task in ("completion", "infill"):
            self.measured_on += f", every {self.data.tasks[config.data.task].validation_step}"
        rows = config.train.micro_batch_size * plan.groups
        self._streams = DocumentStreams(self.data, rows) if config.data.tbptt else None
        self._others: dict[str, MusicDataset] = {}  # in a mix, the tasks other than next-token prediction
        if config.data.task == "mix":
            for task in self.data.tasks.keys() - {"pretrain"}:
                self._others[task] = MusicDataset.of(dataclasses.replace(config.data, task=task), "val")

    @property
    def other_tasks(self) -> tuple[str, ...]:
        """In a mix, the tasks other than next-token prediction, each of which has its own curve."""
        return tuple(self._others)

    @cached_property
    def bigram_loss(self) -> float | None:
        """The loss of a bigram model of the training split in nats per token, a baseline for next-token prediction.

        The model counts at most `NGRAM_TOKENS` tokens and is scored on the whole validation split. None if the run does
        not train next-token prediction.
        """
        if self._config.data.task not in ("pretrain", "mix"):
            return None
        folder = Path(self._config.data.data)
        splits = BinIdx(folder / "train"), BinIdx(folder / "val")
        loss = ngram_nats_per_token(*splits, self.data.vocab_size, order=2)[1]
        return loss if math.isfinite(loss) else None

    @staticmethod
    def of(config: RunConfig, plan: BatchPlan) -> "Validation | None":
        """Return the validation of a run; None if it is turned off or the validation split is empty."""
        if not config.train.val_every or not read_dataset_json(config.data.data)["splits"]["val"]["pieces"]:
            return None
        return Validation(config, plan)

    def measure(self, engine: Engine, through: Through, group: dist.ProcessGroup | None = None) -> dict[str, float]:
        """Return nats per token (for `mix`, of each task) and bits per note, by the name of the curve. Collective.

        `through` passes the batches on, and may raise an exception to end the validation. With context parallelism,
        `group` contains the ranks that read the same rows.
        """
        t, device, rank = self._config.train, engine.device, self._plan.group_of(dist.get_rank())

        def own_parts(batches: Iterator[Batch]) -> Iterator[Batch]:
            return (batch if group is None else batch.part(group) for batch in through(batches))

        rows = (t.micro_batch_size, device, t.val_rows, rank, self._plan.groups, own_parts)
        with engine.eval_mode() as model:
            if self._streams:
                own = range(t.micro_batch_size * rank, t.micro_batch_size * (rank + 1))
                totals = {"val/loss": summed_loss_of_streams(model, self._streams, own, device, t.val_rows, own_parts)}
            else:
                totals = {"val/loss": summed_loss(model, self.data, *rows)}
            for task, data in sorted(self._others.items()):
                totals[f"val/{task}_loss"] = summed_loss(model, data, *rows)
        figures = {}
        notes = read_dataset_json(self._config.data.data)["splits"]["val"].get("notes")
        for curve, total in totals.items():
            dist.all_reduce(total)
            nats, targets = total.tolist()
            figures[curve] = nats / max(targets, 1)
            if curve == "val/loss" and notes and not t.val_rows and self._config.data.task in ("pretrain", "mix"):
                figures["val/bits_per_note"] = nats / math.log(2) / notes  # the loss covers all notes of the split
        return figures
