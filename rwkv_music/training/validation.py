"""Validation during training: the loss on the validation splits, for the tasks that the run trains for."""

import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import distributed as dist

from rwkv_music.config import RunConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import Batch, MusicDataset, read_dataset_json
from rwkv_music.data.mixture import Part, parts_of
from rwkv_music.data.ngrams import ngram_nats_per_token
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.evaluation.losses import Through, summed_loss, summed_loss_of_streams
from rwkv_music.files import file_sha256
from rwkv_music.training.batch_plan import BatchPlan
from rwkv_music.training.deepspeed_engine.engine import Engine


class Validation:
    """The validation of a run.

    In a mixture, each figure is the mean over the datasets, weighted by their shares of the training rows. Datasets
    without a validation split do not count. Each dataset also has its own figures, whose curves end in its name.
    """

    def __init__(self, config: RunConfig, plan: BatchPlan, parts: tuple[Part, ...]) -> None:
        self.parts = parts  # those that have a validation split
        self.datasets = {
            part.name: DatasetValidation(dataclasses.replace(config, data=part.config), plan) for part in parts
        }
        is_mixture = len(config.data.weights) > 1
        self.names = tuple(self.datasets) if is_mixture else ()  # of the datasets that have curves of their own
        # Identifies the splits and the rows. Losses can be compared only if both are the same.
        first, *_ = self.datasets.values()
        self.measured_on = first.measured_on
        if is_mixture:
            self.measured_on = "; ".join(f"{part.share} of {self.datasets[part.name].measured_on}" for part in parts)
        self.other_tasks = first.other_tasks

    @staticmethod
    def of(config: RunConfig, plan: BatchPlan) -> "Validation | None":
        """Return the validation of a run; None if it is turned off or no dataset has a validation split."""
        if not config.train.val_every:
            return None
        parts = (part for part in parts_of(config.data) if read_dataset_json(part.folder)["splits"]["val"]["pieces"])
        return Validation(config, plan, found) if (found := tuple(parts)) else None

    @cached_property
    def bigram_losses(self) -> dict[str, float]:
        """The losses of a bigram model of each dataset, by curve."""
        return self._figures({name: data.bigram_losses() for name, data in self.datasets.items()})

    def measure(self, engine: Engine, through: Through, group: dist.ProcessGroup | None = None) -> dict[str, float]:
        """Return the figures of `DatasetValidation.measure`, by curve. Collective."""
        return self._figures({name: data.measure(engine, through, group) for name, data in self.datasets.items()})

    def _figures(self, of_each: dict[str, dict[str, float]]) -> dict[str, float]:
        """Return the means of the figures that all datasets have and, in a mixture, the figures of each dataset."""
        if not self.names:
            [figures] = of_each.values()
            return figures
        total = sum(part.share for part in self.parts)
        shares = {part.name: float(part.share / total) for part in self.parts}
        curves = [curve for curve in of_each[self.names[0]] if all(curve in figures for figures in of_each.values())]
        means = {curve: sum(shares[name] * of_each[name][curve] for name in self.names) for curve in curves}
        return means | {f"{curve}_{name}": of_each[name][curve] for curve in curves for name in self.names}


class DatasetValidation:
    """The validation split of one dataset, read as document streams if the run trains with `tbptt`."""

    def __init__(self, config: RunConfig, plan: BatchPlan) -> None:
        self._config, self._plan = config, plan
        self.data = MusicDataset.of(config.data, "val")
        # Identifies the split and the rows. Losses can be compared only if both are the same.
        self.measured_on = f"{file_sha256(Path(config.data.data) / 'dataset.json')}, rows {config.train.val_rows}"
        if config.data.task in ("completion", "infill"):
            self.measured_on += f", every {self.data.tasks[config.data.task].validation_step}"
        rows = config.train.micro_batch_size * plan.groups
        self._streams = DocumentStreams(self.data, rows) if config.data.tbptt else None
        self._others: dict[str, MusicDataset] = {}  # with `--task mix`, all but next-token prediction
        if config.data.task == "mix":
            for task in self.data.tasks.keys() - {"pretrain"}:
                self._others[task] = MusicDataset.of(dataclasses.replace(config.data, task=task), "val")

    @property
    def other_tasks(self) -> tuple[str, ...]:
        """The tasks besides next-token prediction that have curves of their own; empty unless the task is `mix`."""
        return tuple(self._others)

    def bigram_losses(self) -> dict[str, float]:
        """Return the loss, in nats per token, of a bigram model of the training split, by the name of the curve.

        The loss is a baseline for next-token prediction. The bigrams are counted on at most `NGRAM_TOKENS` tokens, and
        the bigram model is scored on the whole validation split. The result is empty if the run does not train
        next-token prediction.
        """
        if self._config.data.task not in ("pretrain", "mix"):
            return {}
        folder = Path(self._config.data.data)
        splits = BinIdx(folder / "train"), BinIdx(folder / "val")
        loss = ngram_nats_per_token(*splits, self.data.vocab_size, order=2)[1]
        return {"val/bigram_loss": loss} if math.isfinite(loss) else {}

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
