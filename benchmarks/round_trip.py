"""Encode real files with `multitrack`, decode them, and compare the parts and notes.

    python benchmarks/round_trip.py FOLDER...

A part "comes back" if the decoded file has a track with the same program (or drum kit) and name, in the same order. A
note "comes back" if the decoded part has a note of the same pitch that starts at most half a position (1/48 quarter
note) earlier or later. Pieces that the tokenizer rejects are counted by reason. Writes results/round_trip.json."""

import argparse
import io
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import report

from rwkv_music.midi.events import DRUMS, RejectedMidi, parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.system import available_cores
from rwkv_music.tokenizers.multitrack_vocabulary import STEPS
from rwkv_music.tokenizers.registry import make_codec

TOLERANCE = 0.5 / STEPS + 1e-6  # quarter notes


def identity(part: Part) -> tuple[int, int, str]:
    return part.program, part.kit if part.program == DRUMS else 0, part.name


def compare(path: Path, codec) -> Counter:
    """Return counts for one file."""
    midi = parse_midi(path)
    piece = codec.encode_piece(midi)
    file = io.BytesIO()
    codec.decode(piece.ids, parts=piece.parts).save(file=file)
    back = parse_midi(file.getvalue())
    (parts, part), (parts_back, part_back) = read_parts(midi), read_parts(back)
    found = Counter(files=1, parts=len(parts), notes=len(part))
    found["parts that come back"] = sum(
        identity(own) == identity(other) for own, other in zip(parts, parts_back, strict=False)
    )
    found["files with all parts"] = int(list(map(identity, parts)) == list(map(identity, parts_back)))
    found["programs that change"] = len(np.unique(np.stack([part, played_notes(midi).program]), axis=1)[0]) - len(parts)
    own, other = played_notes(midi), played_notes(back)
    for number in range(len(parts)):
        for pitch in np.unique(own.pitch[part == number]).tolist():
            starts = own.start[(part == number) & (own.pitch == pitch)] / midi.ticks_per_quarter
            starts_back = other.start[(part_back == number) & (other.pitch == pitch)] / back.ticks_per_quarter
            found["notes that come back"] += matched(np.sort(starts), np.sort(starts_back))
    return found


def matched(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many of two sorted arrays can be paired one to one within the tolerance."""
    i = j = n = 0
    while i < len(first) and j < len(second):
        if abs(first[i] - second[j]) <= TOLERANCE:
            n, i, j = n + 1, i + 1, j + 1
        elif first[i] < second[j]:
            i += 1
        else:
            j += 1
    return n


def measured(folder: Path) -> dict[str, Any]:
    """Return the figures of all files in a folder."""
    codec, total, rejected, worst = make_codec("multitrack"), Counter(), Counter(), []
    for path in sorted(folder.rglob("*.mid")):
        try:
            found = compare(path, codec)
        except RejectedMidi as error:
            rejected[error.reason] += 1
            continue
        total += found
        worst.append((found["notes"] - found["notes that come back"], path.name))
    worst = [f"{name}: {n}" for n, name in sorted(worst, reverse=True)[:5] if n]
    share = {"share of notes": round(total["notes that come back"] / max(total["notes"], 1), 6)}
    return {**total, **share, "rejected": dict(rejected), "most notes lost": worst}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--out", default=report.RESULTS, type=Path, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    figures = {}
    with ProcessPoolExecutor(available_cores()) as pool:
        for folder, found in zip(options.folders, pool.map(measured, options.folders), strict=True):
            figures[folder.name] = found
            print(folder.name, found, flush=True)
    print(report.write("round_trip", figures, options.out))


if __name__ == "__main__":
    main()
