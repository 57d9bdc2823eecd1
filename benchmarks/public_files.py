"""Measure on public multi-track files what `generate` keeps of a prompt and what `prepare` keeps of the notes.

    python -m rwkv_music corpus freedoom --out files        # and openttd-openmsx, simutrans-data, mma, ...
    python benchmarks/public_files.py files [--files 100] [--cuts 3] [--seed 0] [--tokenizers multitrack midi-llm]

Files with one part and files with the same bytes as an earlier one are left out, and so are files that cannot be read;
the latter are listed with their reasons. Writes results/public_files.json with counts and names of files.

- openings: each file is cut at random bars and continued by a model with random logits, as fuzz_openings.py does. The
  output must contain the file's events before the line, and nothing else there.
- notes: each file is encoded and decoded. A note survives if the decoded file has a note of the same instrument and
  pitch at the same place in the bar. If the tokens have steps, the tolerance is half a step. Otherwise it is
  TOLERANCE_MS, because every wait of `midi-llm` is rounded. Notes that do not survive are counted by reason.
"""

import argparse
import hashlib
import io
import json
import random
import sys
import time
import traceback
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import fuzz_openings
import mido
import numpy as np
import report
import torch
from tqdm import tqdm

from rwkv_music.errors import UserError
from rwkv_music.generation.completion import complete
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.events import ParsedMidi, RejectedMidi, parse_midi, read_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import BarGrid, TempoMap
from rwkv_music.prepare.sources import MIDI_SUFFIXES
from rwkv_music.system import available_cores
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.multitrack_vocabulary import STEPS
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec

TOLERANCE_MS = 25.0
WORST = 10
NOT_IN_VOCABULARY, DOUBLE, MOVED = "no token for its instrument", "doubles another note", "missing or elsewhere"


def multi_track_files(folders: list[Path]) -> tuple[list[Path], dict[str, str]]:
    """Return the files with several parts, without copies, in order of names, and why others cannot be read."""
    files, unreadable, seen = [], {}, set()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix.lower() in MIDI_SUFFIXES and path.is_file():
            data = path.read_bytes()
            digest = hashlib.sha256(data).digest()
            try:
                if digest not in seen and len(read_notes(_as_mido(data)).parts) > 1:
                    files.append(path)
            except RejectedMidi as error:
                unreadable[_name(path)] = error.reason
            seen.add(digest)
    return files, unreadable


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _as_mido(data: bytes) -> mido.MidiFile:
    return mido.MidiFile(file=io.BytesIO(read_midi(data)), clip=True)


def opening(codec: Codec, path: Path, chance: random.Random) -> tuple[int, str]:
    """Cut a file at a random bar and continue it; return the number of bars kept, and "kept" or what is wrong."""
    source = _as_mido(path.read_bytes())
    notes, grid = read_notes(source), BarGrid.from_midi(source)
    first, last = (int(bar) for bar in grid.bar(notes.start_tick[[0, -1]]))
    context_bars = chance.randint(first + 1, last + 1)
    try:
        (completion,) = complete(
            fuzz_openings.RandomModel(codec.vocab_size), codec, path, context_bars=context_bars,
            bars=fuzz_openings.BARS, max_tokens=40, sampling=Sampling(seed=context_bars),
        )  # fmt: skip
    except UserError as error:
        return context_bars, f"refused: {str(error).replace(str(path), 'the file')}"
    return context_bars, fuzz_openings.check(source, completion, context_bars, int(grid.lines(context_bars)[-1]))


def lost_notes(codec: Codec, data: bytes) -> tuple[int, Counter[str]]:
    """Return the number of notes of a file, and how many of them its tokens lose, by reason."""
    midi = parse_midi(data)
    notes = played_notes(midi)
    piece = codec.encode_piece(midi)
    file = io.BytesIO()
    codec.decode(piece.ids, piece.bar_lines).save(file=file)
    decoded = parse_midi(file.getvalue())
    found = played_notes(decoded)
    programs = [codec.decoded_program(program) for program in notes.program.tolist()]
    if set(programs) == {None}:
        return len(notes), Counter({NOT_IN_VOCABULARY: len(notes)})
    if piece.bar_lines is None:
        at = notes.start / midi.ticks_per_quarter
        found_at = _in_bars_of(midi, decoded, found.start)
        tolerance = np.full(len(notes), 0.5 / STEPS + 1 / midi.ticks_per_quarter)
    else:
        encoded = notes.start[[program is not None for program in programs]]
        at, found_at = _between_bar_lines(midi, notes.start, int(encoded.min()), piece, decoded, found.start)
        tolerance = np.full(len(notes), TOLERANCE_MS)
    lost = Counter()
    places: dict[tuple[int | None, int], list[int]] = defaultdict(list)
    for i, (program, pitch) in enumerate(zip(programs, notes.pitch.tolist(), strict=True)):
        places[program, pitch].append(i)
    found_places: dict[tuple[int, int], list[float]] = defaultdict(list)
    for program, pitch, place in zip(found.program.tolist(), found.pitch.tolist(), found_at.tolist(), strict=True):
        found_places[program, pitch].append(place)
    for key, own in places.items():
        if key[0] is None:
            lost[NOT_IN_VOCABULARY] += len(own)
            continue
        lost += _unmatched(at[own], tolerance[own], np.sort(found_places[key]))
    return len(notes), lost


def _unmatched(at: np.ndarray, tolerance: np.ndarray, found: np.ndarray) -> Counter[str]:
    """Pair the notes of one instrument and pitch with the decoded ones in order; count those without a partner."""
    order = np.argsort(at, kind="stable")
    at, tolerance = at[order], tolerance[order]
    lost, j, last = Counter(), 0, -np.inf  # where the last note with a partner starts
    for place, near in zip(at.tolist(), tolerance.tolist(), strict=True):
        while j < len(found) and found[j] < place - near:
            j += 1
        if j < len(found) and found[j] <= place + near:
            j, last = j + 1, place
        else:
            lost[DOUBLE if place - last <= 2 * near else MOVED] += 1
    return lost


def _in_bars_of(midi: ParsedMidi, decoded: ParsedMidi, ticks: np.ndarray) -> np.ndarray:
    """Return where ticks of a decoded file lie in the original one, in quarter notes.

    They keep their bars and their distances from the bar lines, also if bars of odd lengths got other lengths.
    """
    bars = Multitrack.bar_grid(decoded)
    number = bars.bar(ticks)
    n = int(number.max(initial=0)) + 1
    from_line = (ticks - bars.lines(n)[number]) / decoded.ticks_per_quarter
    return Multitrack.bar_grid(midi).lines(n)[number] / midi.ticks_per_quarter + from_line


def _between_bar_lines(
    midi: ParsedMidi, start: np.ndarray, first: int, piece: Piece, decoded: ParsedMidi, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of ticks `start` of a file, and those that ticks `found` of its decoded file have between the
    file's bar lines, in milliseconds. The bars before the one with tick `first` are not in the tokens."""
    bars = BarGrid.from_events(midi.events, midi.ticks_per_quarter)
    tempo_map = TempoMap.from_events(midi.events, midi.ticks_per_quarter)
    n, dropped = len(piece.bar_starts), int(bars.bar(first))
    line_ms = tempo_map.ms(bars.lines(dropped + n))[dropped:]
    found_lines = BarGrid.from_events(decoded.events, decoded.ticks_per_quarter).lines(n)
    return tempo_map.ms(start), np.interp(found, found_lines, line_ms)


def measure(tokenizer: str, files: list[Path], cuts: int, seed: int) -> dict:
    """Return the figures of one tokenizer."""
    torch.set_num_threads(1)
    codec, openings, lost, n_notes = make_codec(tokenizer), Counter(), Counter(), 0
    not_kept, rejected, by_file = [], {}, []
    for path in tqdm(files, tokenizer, disable=None):
        name = _name(path)
        chance = random.Random(f"{seed} {name}")
        for _ in range(cuts):
            try:
                context_bars, result = opening(codec, path, chance)
            except Exception:
                traceback.print_exc()
                context_bars, result = 0, "traceback"
            openings[result] += 1
            if result != "kept":
                not_kept.append({"file": name, "context_bars": context_bars, "result": result})
        try:
            n, reasons = lost_notes(codec, path.read_bytes())
        except RejectedMidi as error:
            rejected[name] = error.reason
            continue
        n_notes += n
        lost += reasons
        by_file.append({"file": name, "notes": n, "lost": sum(reasons.values()), "reasons": dict(reasons)})
    by_file.sort(key=lambda row: -row["lost"] / row["notes"])
    return {
        "openings": dict(openings.most_common()),
        "openings_not_kept": not_kept,
        "notes": n_notes,
        "notes_kept": n_notes - sum(lost.values()),
        "share_kept": round(1 - sum(lost.values()) / n_notes, 5),
        "lost": dict(lost.most_common()),
        "files_without_loss": sum(not row["lost"] for row in by_file),
        "rejected": rejected,
        "worst": by_file[:WORST],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of MIDI files")
    parser.add_argument("--files", type=int, metavar="N", help="measure a random sample of N files (default: all)")
    parser.add_argument("--cuts", type=int, default=3, help="openings of each file (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizers", nargs="+", choices=TOKENIZERS, default=list(TOKENIZERS))
    options = parser.parse_args()
    start = time.perf_counter()
    files, unreadable = multi_track_files(options.folders)
    found = len(files)
    if options.files:
        files = sorted(random.Random(options.seed).sample(files, min(options.files, found)))
    names = options.tokenizers
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        found_by = pool.map(measure, names, repeat(files), repeat(options.cuts), repeat(options.seed))
        results = dict(zip(names, found_by, strict=True))
    for name, figures in results.items():
        print(name, json.dumps(figures, indent=2), flush=True)
    facts = {
        "files_found": found,
        "files": len(files),
        "files_by_folder": dict(Counter(path.parent.name for path in files)),
        "unreadable": unreadable,
        "cuts": options.cuts,
        "seed": options.seed,
        "seconds": round(time.perf_counter() - start),
    }
    print(report.write("public_files", facts | {"results": results}))
    return int(any(set(figures["openings"]) - {"kept"} for figures in results.values()))


if __name__ == "__main__":
    sys.exit(main())
