"""Fill random holes in real MIDI files. Check that the requested cells are written and nothing else changes.

    python benchmarks/fuzz_fills.py FOLDER... [--model RUN] [--fills 2000] [--seed 0] [--workers N]

Each fill draws a multi-track file, bars, parts, controls and new parts from its own seed, and samples at temperature
1.5. Without --model, every token that the grammar allows is equally likely. The result must be a valid file with the
requested cells. Apart from the notes that start in these cells, it must have the same events as the source.

Writes results/fills.json. Exit status 1 if something else changed or an exception is not a UserError.
"""

import argparse
import io
import random
import sys
import time
import traceback
from collections import Counter, defaultdict, deque
from multiprocessing import get_context
from pathlib import Path

import mido
import numpy as np
import report
import torch
from fuzz_openings import RandomModel
from tqdm import tqdm

from rwkv_music.checkpoint.weights import load_model
from rwkv_music.errors import UserError
from rwkv_music.generation.fill import Filling, fill
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.cells import NewPart
from rwkv_music.midi.controls import CONTROLS
from rwkv_music.midi.events import DRUMS, RejectedMidi, parse_midi, timed_messages
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.midi.time import BarGrid, first_bar_number
from rwkv_music.system import available_cores
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.registry import make_codec

Events = list[list[tuple]]  # for each track, the events outside the cells
MOST_BARS, MOST_PARTS = 3, 4  # largest size of a block of holes, so that a fill is short


def fill_one(model: torch.nn.Module, codec, path: Path, seed: int) -> tuple[str, int]:
    """Fill random cells of a file. Return what is wrong with the result, or "kept", and the number of cells."""
    chance = random.Random(seed)
    midi = parse_midi(path)
    parts, _ = read_parts(midi)
    grid = BarGrid.from_events(midi.events, midi.ticks_per_quarter)
    n_bars = int(grid.bar(played_notes(midi).start.max())) + 1
    first = first_bar_number(grid)
    requests, expected = [], set()
    for _ in range(chance.randint(1, 2)):
        begin = chance.randrange(n_bars)
        stop = min(begin + chance.randint(1, MOST_BARS), n_bars)
        numbers = sorted(chance.sample(range(1, len(parts) + 1), chance.randint(1, min(len(parts), MOST_PARTS))))
        requests.append(f"bars={begin + first}-{stop - 1 + first} parts={','.join(map(str, numbers))}")
        expected |= {(bar, number - 1) for bar in range(begin, stop) for number in numbers}
    new_parts = []
    if chance.random() < 0.2:
        new_parts = [NewPart(chance.choice((0, 32, 73, DRUMS)))]
        begin = chance.randrange(n_bars)
        requests.append(f"bars={begin + first} parts={len(parts) + 1}")
        expected.add((begin, len(parts)))
    controls = []
    if chance.random() < 0.5:
        control = chance.choice(CONTROLS)
        controls = [f"{control.name}={chance.choice(control.classes)}"]
    try:
        (filling,) = fill(
            model, codec, path, requests, new_parts=new_parts, controls=controls, context_bars=chance.randint(1, 8),
            sampling=Sampling(temperature=1.5, seed=seed),
        )  # fmt: skip
    except UserError as error:
        if "every note" in str(error):
            return "refused: every note was asked for", 0
        return f"refused: {str(error).replace(str(path), 'the file')}", 0
    return check(midi.data, filling, expected, grid), len(expected)


def check(data: bytes, filling: Filling, expected: set[tuple[int, int]], grid: BarGrid) -> str:
    """Return what is wrong with a filling of the file `data`, or "kept"."""
    source = mido.MidiFile(file=io.BytesIO(data), clip=True)
    if {(cell.bar, cell.part) for cell in filling.cells} != expected:
        return "other cells"
    file = io.BytesIO()
    filling.midi().save(file=file)
    result = mido.MidiFile(file=io.BytesIO(file.getvalue()), clip=True)
    lines = grid.lines(max(bar for bar, _ in expected) + 1)
    spans: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for bar, index in expected:
        if isinstance(part := filling.parts[index], Part):
            spans[part.track, part.channel].append((int(lines[bar]), int(lines[bar + 1])))
    n_new = sum(isinstance(part, NewPart) for part in filling.parts)
    if len(result.tracks) != len(source.tracks) + n_new:
        return "another number of tracks"
    for before, after in zip(outside(source, spans), outside(result, spans), strict=False):
        if before != after:
            return "another event outside the cells"
    if n_without_length(file.getvalue()) > n_without_length(data):
        return "a note without a length"
    return "kept"


def n_without_length(data: bytes) -> int:
    notes = played_notes(parse_midi(data))
    return int((notes.end <= notes.start).sum())


def outside(midi: mido.MidiFile, spans: dict[tuple[int, int], list[tuple[int, int]]]) -> Events:
    """Return the events of each track, without the notes that start in the spans of their part."""
    tracks: Events = []
    for number, track in enumerate(midi.tracks):
        sounding: dict[tuple[int, int], deque[bool]] = defaultdict(deque)  # whether each note is inside
        kept, port = [], 0
        for tick, message in timed_messages(track):
            if message.type == "midi_port":
                port = message.port
            inside = False
            if message.type in ("note_on", "note_off"):
                channel = 16 * port + message.channel
                held = sounding[channel, message.note]
                if message.type == "note_on" and message.velocity:
                    inside = any(start <= tick < end for start, end in spans.get((number, channel), ()))
                    held.append(inside)
                elif held:
                    inside = held.popleft()
            if not inside:
                kept.append((tick, str(message.copy(time=0))))
        tracks.append(kept)
    return tracks


def multi_track_files(folders: list[Path]) -> list[Path]:
    """Return the MIDI files with at least two parts that the tokenizer accepts, sorted."""
    codec, found = make_codec("multitrack"), []
    for path in sorted(path for folder in folders for path in folder.rglob("*.mid")):
        try:
            if len(codec.encode_piece(path).parts) > 1:
                found.append(path)
        except RejectedMidi:
            continue
    return found


class Worker:
    """A process that fills in files."""

    model: torch.nn.Module
    codec: Multitrack
    files: list[Path]

    @classmethod
    def start(cls, run: Path | None, files: list[Path]) -> None:
        torch.set_num_threads(1)
        cls.codec, cls.files = make_codec("multitrack"), files
        cls.model = RandomModel(cls.codec.vocab_size)
        if run:
            cls.model, cls.codec, *_ = load_model(run, "cpu")

    @classmethod
    def fill(cls, seed: int) -> tuple[str, int]:
        """Fill one file; return what `fill_one` returns."""
        path = cls.files[np.random.default_rng(seed).integers(len(cls.files))]
        try:
            result, cells = fill_one(cls.model, cls.codec, path, seed)
        except Exception:
            traceback.print_exc()
            result, cells = "traceback", 0
        if result != "kept" and not result.startswith("refused"):
            print(f"{path.name}, seed {seed}: {result}", flush=True)
        return result, cells


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, help="run folder (default: random logits)")
    parser.add_argument("--fills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workers", type=int, default=available_cores(), help="number of processes (default: all cores)"
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, metavar="DIR", help="output folder")
    options = parser.parse_args()
    files, start = multi_track_files(options.folders), time.perf_counter()
    seeds = range(options.seed, options.seed + options.fills)
    found: Counter[str] = Counter()
    n_cells = 0
    with get_context("spawn").Pool(options.workers, Worker.start, (options.model, files)) as pool:
        for result, cells in tqdm(pool.imap(Worker.fill, seeds), "fills", len(seeds), disable=None):
            found[result] += 1
            n_cells += cells
    facts = {
        "fills": options.fills,
        "seed": options.seed,
        "files": len(files),
        "cells": n_cells,
        "model": "trained" if options.model else "random logits",
        "seconds": round(time.perf_counter() - start),
    }
    print(dict(found.most_common()), facts, flush=True)
    report.write("fills", facts | {"results": dict(found.most_common())}, options.out)
    return int(any(not (name == "kept" or name.startswith("refused")) for name in found))


if __name__ == "__main__":
    sys.exit(main())
