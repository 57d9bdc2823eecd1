"""How well a model predicts a split: nats a token, bits a note, beside what counting alone reaches."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkv_music.data.baseline import bigram_nats_per_token, unigram_nats_per_token
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.codecs import Codec
from rwkv_music.data.dataset import MusicDataset, read_dataset_json
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import RWKV


@torch.no_grad()
def summed_loss(
    model: RWKV,
    dataset: MusicDataset,
    batch_size: int,
    device: torch.device | str,
    max_rows: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> torch.Tensor:
    """This rank's share of a split's loss: float64 [2], the sum of the nats and how many targets they are of.

    Sums over ranks and divides nothing, so that every target weighs the same however the rows are shared out. With
    `max_rows` only the first rows of the split count (rounded up to whole batches). Every rank runs the same number of
    batches.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    rows = 0
    for batch in dataset.validation_batches(batch_size, rank, world_size):
        count = batch.n_targets
        batch = batch.to(device)
        loss = model(batch.input_ids, targets=batch.targets, cu_seqlens=batch.cu_seqlens, reduction="sum")
        total += torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
        rows += batch_size * world_size
        if max_rows and rows >= max_rows:
            break
    return total


@dataclass(frozen=True)
class Evaluation:
    """A split's figures. `nats_per_token` is over every token that has a predecessor in its own piece."""

    split: str
    targets: int
    nats_per_token: float
    bits_per_note: float
    bigram_nats_per_token: float
    unigram_nats_per_token: float


def evaluate(model: RWKV, codec: Codec, data: str | os.PathLike, ctx_len: int, batch_size: int) -> list[Evaluation]:
    """The model on each split of a dataset, beside bigram and unigram models fitted on its training split.

    Pieces are read in windows of `ctx_len` tokens, each from an empty state. Bits a note are all the nats of the split
    over its notes. Raises UserError if the dataset has another tokenizer than the model.
    """
    if batch_size < 1:
        raise UserError(f"The batch size is {batch_size} rows: choose 1 or more.")
    device = next(model.parameters()).device
    train = BinIdx(Path(data) / "train")
    rows = []
    for split, counts in read_dataset_json(data)["splits"].items():
        if not counts["pieces"]:
            continue
        dataset = MusicDataset(data, split, ctx_len, fingerprint=codec.fingerprint)
        nats, targets = summed_loss(model, dataset, batch_size, device).tolist()
        pieces = BinIdx(Path(data) / split)
        rows.append(
            Evaluation(
                split=split,
                targets=round(targets),
                nats_per_token=nats / targets,
                bits_per_note=nats / math.log(2) / max(counts["notes"], 1),
                bigram_nats_per_token=bigram_nats_per_token(train, pieces, codec.vocab_size),
                unigram_nats_per_token=unigram_nats_per_token(train, pieces, codec.vocab_size),
            )
        )
    return rows


def as_table(rows: list[Evaluation]) -> str:
    """The figures as people read them."""
    lines = [f"{'split':<6}{'tokens':>12}{'nats/token':>12}{'bits/note':>11}{'bigram':>9}{'unigram':>9}   (nats/token)"]
    lines += [
        f"{r.split:<6}{r.targets:>12,}{r.nats_per_token:>12.4f}{r.bits_per_note:>11.3f}"
        f"{r.bigram_nats_per_token:>9.4f}{r.unigram_nats_per_token:>9.4f}"
        for r in rows
    ]
    return "\n".join(lines)
