"""Complete or fill in a MIDI file, show the progress, and write the results as .mid files with piano rolls."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mido
import torch

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path, check_output_file
from rwkv_music.generation.completion import Completion, complete
from rwkv_music.generation.fill import Filling, fill
from rwkv_music.generation.sampling import DEFAULT_SAMPLING, Sampling
from rwkv_music.midi.piano_roll import save_piano_roll
from rwkv_music.midi.regions import Region
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Codec


def complete_to_files(
    model: torch.nn.Module,
    codec: Codec,
    prompt: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    context_bars: int,
    bars: int,
    count: int = 1,
    tags: Mapping[str, str] | None = None,
    sampling: Sampling = DEFAULT_SAMPLING,
    completion_only: bool = False,
) -> list[Completion]:
    """Complete the MIDI file `prompt` as `complete` does, and write the results as `save_completions` does.

    If `prompt` is None, generate pieces from scratch. A progress bar is shown during the generation. Raises UserError
    as these functions do.
    """
    completion_paths(out, count, prompt)  # reports an invalid name before the generation
    with progress_bar(None, "completing", count * bars, unit=" bars") as bar:
        completions = complete(
            model,
            codec,
            prompt,
            context_bars=context_bars,
            bars=bars,
            count=count,
            tags=tags,
            sampling=sampling,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    save_completions(completions, out, completion_only)
    return completions


def completion_paths(out: str | os.PathLike, count: int, prompt: str | os.PathLike | None = None) -> list[Path]:
    """Return the .mid paths of `count` completions: OUT.mid for one, OUT-1.mid, OUT-2.mid ... for several.

    Raises UserError if `out` does not end in .mid or .midi, or if one of the paths is the file `prompt`.
    """
    out = Path(out)
    if out.suffix.lower() not in (".mid", ".midi"):
        raise UserError(f"{out} is not the name of a MIDI file: give an --out that ends in .mid.")
    return numbered_paths(out, count, prompt)


def numbered_paths(out: Path, count: int, prompt: str | os.PathLike | None = None) -> list[Path]:
    """Return `out`, or OUT-1, OUT-2 ... if `count` is more than 1.

    Raises UserError if one of the paths is the file `prompt`, a folder or a special file.
    """
    paths = [out] if count == 1 else [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(1, count + 1)]
    if prompt is not None and os.path.realpath(prompt) in map(os.path.realpath, paths):
        raise UserError(f"The completion would overwrite its prompt, {prompt}: choose another --out.")
    for path in paths:
        check_output_file(path)
    return paths


def save_completions(
    completions: list[Completion], out: str | os.PathLike, completion_only: bool = False
) -> list[Path]:
    """Write each completion as a .mid file, and its piano roll as a .png file beside it. Return the .mid paths.

    Each file is written atomically. With `completion_only`, the bars of the prompt are left out. Raises UserError if a
    file cannot be written.
    """
    paths = completion_paths(out, len(completions))
    for completion, path in zip(completions, paths, strict=True):
        if completion_only:
            save_piece(completion.midi_alone(), [Region(0, completion.bars)], path)
        else:
            save_piece(completion.midi(), completion.regions(), path)
    return paths


def fill_to_files(
    model: torch.nn.Module,
    codec: Codec,
    piece: str | os.PathLike,
    out: str | os.PathLike,
    count: int = 1,
    **options: Any,
) -> list[Filling]:
    """Fill in the MIDI file `piece` as `fill` does, and write the results as `save_completions` does.

    `options` are those of `fill`. A progress bar is shown during the generation.
    """
    paths = completion_paths(out, count, piece)
    with progress_bar(None, "filling in", unit=" cells") as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        fillings = fill(model, codec, piece, count=count, progress=progress, **options)
    for filling, path in zip(fillings, paths, strict=True):
        save_piece(filling.midi(), filling.regions(), path)
    return fillings


def save_piece(midi: mido.MidiFile, regions: Sequence[Region], path: Path) -> None:
    """Write a .mid file, and its piano roll as a .png file beside it. Raises UserError if a file cannot be written.

    `regions` are the bars and parts that a model has written.
    """
    with explained(f"writing {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            midi.save(partial)
    save_piano_roll(midi, path.with_suffix(".png"), path.stem, regions)
