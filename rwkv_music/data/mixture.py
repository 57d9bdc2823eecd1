"""The training rows of a run: those of one dataset, or of a mixture of several.

A fixed pattern (see shares.py) assigns each sample number to a dataset, in proportion to the weights. It also
determines how many samples of the same dataset precede a sample. This count is the sample's number i in its dataset.
Sample i of a dataset is the same row as in training on this dataset alone. Each dataset therefore has its own order,
its own passes and, in a mix of tasks, its own pattern of tasks. As with one dataset, a batch is a range of sample
numbers and does not depend on earlier batches.
"""

import dataclasses
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rwkv_music.config import DataConfig
from rwkv_music.data.dataset import Batch, MusicDataset
from rwkv_music.data.shares import assign
from rwkv_music.data.tasks import Row
from rwkv_music.errors import UserError


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    name: str  # used in the names of TensorBoard curves
    folder: Path
    weight: float
    share: Fraction  # of the rows; the shares of all parts add up to 1
    config: DataConfig  # the configuration of a run on this dataset alone


def parts_of(config: DataConfig) -> tuple[Part, ...]:
    """Return the datasets of a run, in the order of the command line.

    The name of a dataset is the name of its folder. If several folders have the same name, a number is added to all
    but the first.
    """
    exact = {folder: Fraction(str(weight)) for folder, weight in config.weights.items()}
    parts: dict[str, Part] = {}
    for folder, weight in config.weights.items():
        name = own = re.sub(r"[^-\w.]", "_", Path(folder).name)  # TensorBoard allows these characters
        number = 1
        while name in parts:
            number += 1
            name = f"{own}_{number}"
        share = exact[folder] / sum(exact.values())
        parts[name] = Part(name, Path(folder), weight, share, dataclasses.replace(config, data=folder))
    return tuple(parts.values())


class Mixture:
    """The training splits of one or more datasets, as rows of at most `ctx_len` tokens.

    Raises UserError as `MusicDataset` does, and if the datasets have different tokenizers.
    """

    def __init__(self, config: DataConfig) -> None:
        self.parts = parts_of(config)
        self.datasets = {part.name: MusicDataset.of(part.config, "train") for part in self.parts}
        self._shares = {part.name: part.share for part in self.parts}
        self._first = first = self.datasets[self.parts[0].name]
        self.vocab_size, self.fingerprint = first.vocab_size, first.fingerprint
        for dataset in self.datasets.values():
            if dataset.fingerprint != first.fingerprint:
                raise UserError(
                    f"The tokenizers of {first.data_dir} ({first.tokenizer_name}, {first.fingerprint[:12]}) and "
                    f"{dataset.data_dir} ({dataset.tokenizer_name}, {dataset.fingerprint[:12]}) differ: prepare both "
                    f"with the same --tokenizer and the same tags, or prepare all pieces as one dataset."
                )

    @property
    def is_slow(self) -> bool:
        """Whether it takes much Python code to make some of the rows."""
        return any(dataset.is_slow for dataset in self.datasets.values())

    def row(self, sample: int) -> Row:
        """Return sample number `sample`."""
        name, number = assign(sample, self._shares)
        return self.datasets[name].row(number)

    def batch(self, start: int, stop: int) -> Batch:
        """Return samples start..stop - 1, one per row. If there are none, return one row of padding."""
        return self.batch_of([self.row(sample) for sample in range(start, stop)])

    def batch_of(self, rows: list[Row]) -> Batch:
        """Return a batch of rows that `row` returned. If there are none, return one row of padding."""
        return self._first.batch_of(rows)
