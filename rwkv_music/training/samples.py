"""Samples during training: the model completes and fills in a held-out piece, and TensorBoard shows and plays it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mido
import numpy as np

from rwkv_music.checkpoint.run_folder import checkpoint_name
from rwkv_music.config import RunConfig
from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError, plural
from rwkv_music.files import open_file, parse_json
from rwkv_music.generation.completion import complete
from rwkv_music.generation.completion_files import save_piece
from rwkv_music.generation.fill import fill_bars
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi import audio
from rwkv_music.midi.piano_roll import draw_piano_roll
from rwkv_music.midi.regions import Region
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import load_codec
from rwkv_music.training.metrics import Curves

SCALE = 2  # enlarges the text in pictures, because TensorBoard shows them at less than half their width


@dataclass(frozen=True)
class Sample:
    """A piece with regions that the model has written, and the same bars of the real piece."""

    name: str  # "completion" or "fill"
    title: str
    piece: str  # file name of the held-out piece
    midi: mido.MidiFile
    regions: list[Region]
    real: mido.MidiFile


class HeldOut:
    """The first piece of a split of the dataset `folder` that is long enough for a completion.

    Raises UserError if a package is missing.
    """

    def __init__(self, config: RunConfig, folder: Path, split: str) -> None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"Samples need {error.name}: run pip install 'rwkv-music[music]', or train with --sample_every 0."
            ) from error
        self._train, self._seed, self._fills = config.train, config.data.seed, config.data.infills
        self._codec = load_codec(folder / "tokenizer.json")
        context_bars, bars = config.train.sample_context_bars, config.train.sample_bars
        pieces = Pieces(folder, split, self._codec)
        # Prefer a piece whose real continuation is as long as the sample.
        long_enough = (
            i for least in (context_bars + bars, context_bars) for i in range(len(pieces))
            if len(pieces[i].bar_starts) >= least
        )  # fmt: skip
        chosen = next(long_enough, None)
        self._piece = None if chosen is None else pieces[chosen]
        self._name = "" if chosen is None else piece_name(folder, split, chosen)

    def draw(self, model: RWKV, after_token: Callable[[], object]) -> list[Sample]:
        """Complete the piece's first bars with `model`. If the run trains infilling, also fill in the bars after them.

        Return the samples; none if no piece is long enough. `after_token` is called after every token. It may raise an
        exception to end the sampling.
        """
        if self._piece is None:
            return []
        context_bars, bars = self._train.sample_context_bars, self._train.sample_bars
        options = {"sampling": Sampling(seed=self._seed), "progress": lambda *_: after_token()}
        [completion] = complete(model, self._codec, self._piece, context_bars=context_bars, bars=bars, **options)
        title = f"{plural(context_bars, 'bar')} given, {completion.bars} completed"
        real = self._codec.first_bars(self._piece, min(context_bars + bars, len(self._piece.bar_starts)))
        real_midi = self._codec.decode(real.ids, real.bar_lines)
        samples = [Sample("completion", title, self._name, completion.midi(), completion.regions(), real_midi)]
        if self._fills and context_bars + bars < len(self._piece.bar_starts):
            filling = fill_bars(model, self._codec, self._piece, context_bars, bars, **options)
            title = f"{plural(bars, 'bar')} filled in"
            samples.append(Sample("fill", title, self._name, filling.midi(), filling.regions(), filling.source))
        return samples


def piece_name(data: str | os.PathLike, split: str, number: int) -> str:
    """Return the file name, without folder, of document `number` of a split; "" if the dataset does not list files."""
    try:
        with open_file(Path(data) / "pieces.jsonl") as lines:
            of_split = (piece for piece in map(parse_json, lines) if piece["split"] == split)
            return Path(next(islice(of_split, number, None))["file"]).name
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return ""


def show(sample: Sample, curves: Curves, step: int, folder: Path) -> None:
    """Write a sample's piano roll, and its sound if FluidSynth is installed, to TensorBoard, and a .mid to `folder`.

    Below the sample, the picture shows the same bars of the real piece.
    """
    title, tag = f"{sample.piece}, step {step:,}: {sample.title}", f"samples/{sample.name}"
    pictures = [
        draw_piano_roll(sample.midi, title, sample.regions, SCALE),
        draw_piano_roll(sample.real, f"{sample.piece}: the real bars", (), SCALE),
    ]
    show_piece(sample.midi, pictures, curves, step, tag)
    save_piece(sample.midi, sample.regions, folder / f"{checkpoint_name(step)}-{sample.name}.mid")


def show_piece(midi: mido.MidiFile, pictures: Sequence[np.ndarray], curves: Curves, step: int, tag: str) -> None:
    """Write a piece to TensorBoard: its pictures, one above the other, and its sound if FluidSynth is installed.

    The pictures, uint8 [height, width, 3], must have the same width.
    """
    curves.image(step, tag, np.concatenate(pictures))
    if _can_synthesize():
        # TensorBoard treats all points of a tag as one kind of data. With one tag for both, neither image nor sound
        # would be shown.
        curves.sound(step, f"{tag}_sound", audio.sound(midi), audio.SAMPLE_RATE)


def _can_synthesize() -> bool:
    try:
        audio.check_audio()
    except UserError:
        return False
    return True
