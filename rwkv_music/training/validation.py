"""The validation split while a run trains: its loss on the tasks that the run trains for."""

import dataclasses
import math

import deepspeed
import torch

from rwkv_music.config import RunConfig
from rwkv_music.data.dataset import MusicDataset, read_dataset_json
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.evaluation import summed_loss, summed_loss_of_streams
from rwkv_music.training.deepspeed_engine.engine import eval_mode, rank, sum_over_ranks


class Validation:
    """The validation split of a run's data, as whole pieces where the run carries states.

    Attributes:
        data: its rows.
    """

    def __init__(self, config: RunConfig, world_size: int) -> None:
        self._config, self._world_size = config, world_size
        self.data = MusicDataset.of(config.data, "val")
        self._streams = (
            DocumentStreams(self.data, config.train.micro_batch_size * world_size) if config.data.tbptt else None
        )
        self._completions = None  # in a mix it is of both tasks
        if config.data.task == "mix":
            self._completions = MusicDataset.of(dataclasses.replace(config.data, task="completion"), "val")

    @staticmethod
    def of(config: RunConfig, world_size: int) -> "Validation | None":
        """None where no validation is asked for, or the dataset was prepared without one."""
        if not config.train.val_every or not read_dataset_json(config.data.data)["splits"]["val"]["pieces"]:
            return None
        return Validation(config, world_size)

    def measure(self, engine: deepspeed.DeepSpeedEngine, device: torch.device) -> dict[str, float]:
        """The curves' next points: nats a token, in a mix of completions too; bits a note. Every rank calls it."""
        t = self._config.train
        rows = (t.micro_batch_size, device, t.val_rows, rank(), self._world_size)
        with eval_mode(engine) as model:
            if self._streams:
                own = range(t.micro_batch_size * rank(), t.micro_batch_size * (rank() + 1))
                totals = {"val/loss": summed_loss_of_streams(model, self._streams, own, device, t.val_rows)}
            else:
                totals = {"val/loss": summed_loss(model, self.data, *rows)}
            if self._completions:
                totals["val/completion_loss"] = summed_loss(model, self._completions, *rows)
        figures = {}
        notes = read_dataset_json(self._config.data.data)["splits"]["val"].get("notes")
        for curve, total in totals.items():
            nats, targets = sum_over_ranks(total).tolist()
            figures[curve] = nats / max(targets, 1)
            if curve == "val/loss" and notes and not t.val_rows and self._config.data.task != "completion":
                figures["val/bits_per_note"] = nats / math.log(2) / notes  # the loss is of all of them
        return figures
