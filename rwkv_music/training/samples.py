"""Samples during training: the model completes and fills in a held-out piece, and TensorBoard shows and plays it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mido

from rwkv_music.checkpoint.run_folder import checkpoint_name
from rwkv_music.config import RunConfig
from rwkv_music.data.pieces import Pieces
from rwkv_music.errors import UserError
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


@dataclass(frozen=True)
class Sample:
    """A piece of which the model has written the `regions`."""

    name: str  # "completion" or "fill"
    title: str
    midi: mido.MidiFile
    regions: list[Region]


class HeldOut:
    """The first piece of a split that is long enough to be completed. Raises UserError if a package is missing."""

    def __init__(self, config: RunConfig, split: str) -> None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"Samples need {error.name}: run pip install 'rwkv-music[music]', or train with --sample_every 0."
            ) from error
        self._train, self._seed, self._fills = config.train, config.data.seed, config.data.infills
        self._codec = load_codec(Path(config.data.data) / "tokenizer.json")
        long_enough = (
            piece
            for piece in Pieces(config.data.data, split, self._codec)
            if len(piece.bar_starts) >= config.train.sample_context_bars
        )
        self._piece = next(long_enough, None)

    def draw(self, model: RWKV, after_token: Callable[[], object]) -> list[Sample]:
        """Return a completion of the piece's first bars by `model` and, if it learns to fill in, a fill of later bars.

        The list is empty if no piece is long enough. `after_token` is called after every token and may raise to end
        the sample.
        """
        if self._piece is None:
            return []
        context_bars, bars = self._train.sample_context_bars, self._train.sample_bars
        options = {"sampling": Sampling(seed=self._seed), "progress": lambda *_: after_token()}
        [completion] = complete(model, self._codec, self._piece, context_bars=context_bars, bars=bars, **options)
        title = f"{context_bars} bars given, {completion.bars} completed"
        samples = [Sample("completion", title, completion.midi(), completion.regions())]
        if self._fills and context_bars + bars < len(self._piece.bar_starts):
            filling = fill_bars(model, self._codec, self._piece, context_bars, bars, **options)
            samples.append(Sample("fill", f"{bars} bars filled in", filling.midi(), filling.regions()))
        return samples


def show(sample: Sample, curves: Curves, step: int, folder: Path) -> None:
    """Write a sample's piano roll, and its sound if FluidSynth is installed, to TensorBoard; a .mid to `folder`."""
    show_piece(sample.midi, sample.regions, f"step {step:,}: {sample.title}", curves, step, f"samples/{sample.name}")
    save_piece(sample.midi, sample.regions, folder / f"{checkpoint_name(step)}-{sample.name}.mid")


def show_piece(midi: mido.MidiFile, regions: Sequence[Region], title: str, curves: Curves, step: int, tag: str) -> None:
    """Write the piano roll of a piece with its written regions, and its sound if FluidSynth is installed."""
    curves.image(step, tag, draw_piano_roll(midi, title, regions))
    if _can_synthesize():
        # TensorBoard reads all points of a tag as one kind of data. Sound under the image's tag would hide both.
        curves.sound(step, f"{tag}_sound", audio.sound(midi), audio.SAMPLE_RATE)


def _can_synthesize() -> bool:
    try:
        audio.check_audio()
    except UserError:
        return False
    return True
