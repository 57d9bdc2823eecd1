"""Complete random multi-track files and check that `generate` keeps their openings event for event, on a CPU.

    python benchmarks/fuzz_openings.py [--files 2000] [--seed 0] [--tokenizers multitrack midi-llm]

Each file is drawn from its own seed. It has two to six tracks with programs, pedals, controllers, lyrics, tempo and
time signature changes anywhere, notes held over bar lines or never released, ports and odd resolutions. It is cut at a
random bar line and continued by a model with random logits. The output must have the resolution of the file. Before the
bar line, it must have exactly the file's events, at the same ticks. After the bar line, it must have the requested
number of bars, with positive note lengths and only tempos that its tokens name. A prompt may be refused only if the
tokenizer finds no notes in it.

Writes results/openings.json. Exit status 1 if an opening is not kept or an exception is not a UserError.
"""

import argparse
import io
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import mido
import numpy as np
import report
import torch
from tqdm import tqdm

from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError
from rwkv_music.generation.completion import Completion, complete
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import BarGrid
from rwkv_music.system import available_cores
from rwkv_music.tokenizers.codec import Codec
from rwkv_music.tokenizers.multitrack import Multitrack
from rwkv_music.tokenizers.registry import make_codec

RESOLUTIONS = (1, 7, 24, 25, 96, 97, 120, 192, 384, 480, 960, 1000, 1024, 9600, 10080, 32767)
METERS = (
    (4, 4), (3, 4), (2, 4), (6, 8), (9, 8), (12, 8), (5, 4), (7, 8), (2, 2), (1, 4), (3, 16), (1, 1),
    (18, 8), (24, 8), (21, 16), (5, 32), (255, 64), (0, 4),
)  # fmt: skip
CONTROLS = (0, 1, 5, 7, 10, 11, 32, 64, 64, 64, 65, 66, 67, 91, 93, 100, 101, 6, 38, 98, 99, 120, 121, 123)
BARS = 2
SET_UP = {"track_name", "program_change"}  # at the start of the tracks of new parts, which only multitrack has


def random_file(seed: int) -> mido.MidiFile:
    """Return a multi-track file drawn from `seed`."""
    chance = random.Random(seed)
    division = chance.choice(RESOLUTIONS)
    n_tracks = chance.randint(2, 6)
    midi = mido.MidiFile(type=1, ticks_per_beat=division, charset="utf-8")
    length = division * chance.choice((8, 20, 40))
    grid = max(1, division // chance.choice((1, 2, 4, 24)))
    everywhere = chance.random()  # how often events are off the grid
    for track in range(n_tracks):
        channels = chance.sample(range(16), chance.choice((1, 1, 2, 4)))
        events: list[tuple[int, mido.messages.BaseMessage]] = [
            (0, mido.MetaMessage("track_name", name=f"Part {track}"))
        ]

        def tick() -> int:
            at = chance.randrange(length)
            return at if chance.random() < everywhere else at // grid * grid

        if chance.random() < 0.15:
            events.append((0, mido.MetaMessage("midi_port", port=chance.randint(0, 2))))
        for channel in channels:
            for _ in range(chance.choice((0, 1, 1, 3))):
                at = 0 if chance.random() < 0.6 else tick()
                events.append((at, mido.Message("program_change", channel=channel, program=chance.randrange(128))))
        for _ in range(chance.choice((0, 5, 60)) if track else chance.randint(1, 40)):
            channel, start = chance.choice(channels), tick()
            end = start + chance.choice((1, grid, grid, 2 * grid, 16 * division, chance.randint(1, length)))
            pitch = chance.choice((chance.randrange(128), chance.randint(58, 64)))
            events.append(
                (start, mido.Message("note_on", channel=channel, note=pitch, velocity=chance.randint(1, 127)))
            )
            if chance.random() < 0.95:
                kind = chance.choice(("note_on", "note_off"))
                events.append((end, mido.Message(kind, channel=channel, note=pitch, velocity=0)))
        for _ in range(chance.choice((0, 0, 4, 30))):
            events.append((tick(), _other_event(chance, chance.choice(channels))))
        if track == 0 or chance.random() < 0.2:
            for _ in range(chance.choice((0, 1, 1, 3))):
                numerator, denominator = chance.choice(METERS)
                meter = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
                events.append((chance.choice((0, tick(), tick() // division * division)), meter))
            for _ in range(chance.choice((0, 1, 1, 5))):
                tempo = chance.choice((round(60e6 / chance.uniform(20, 600)), 1, 0xFFFFFF, 500_000, 428_571))
                events.append((chance.choice((0, tick())), mido.MetaMessage("set_tempo", tempo=tempo)))
        events.sort(key=lambda event: event[0])
        now, messages = 0, mido.MidiTrack()
        for at, message in events:
            messages.append(message.copy(time=at - now))
            now = at
        if chance.random() < 0.3:
            messages.append(mido.MetaMessage("end_of_track", time=chance.randrange(length)))
        midi.tracks.append(messages)
    return midi


def _other_event(chance: random.Random, channel: int) -> mido.messages.BaseMessage:
    """Return a controller, pitch bend, pressure, text, key signature or system exclusive message."""
    draw = chance.randrange(12)
    if draw < 6:
        return mido.Message(
            "control_change", channel=channel, control=chance.choice(CONTROLS), value=chance.choice((0, 127, 64, 100))
        )
    if draw == 6:
        return mido.Message("pitchwheel", channel=channel, pitch=chance.randint(-8192, 8191))
    if draw == 7:
        return mido.Message("aftertouch", channel=channel, value=chance.randrange(128))
    if draw == 8:
        return mido.Message("polytouch", channel=channel, note=chance.randrange(128), value=chance.randrange(128))
    if draw == 9:
        return mido.MetaMessage(chance.choice(("lyrics", "text", "marker")), text="la-é")
    if draw == 10:
        return mido.MetaMessage("key_signature", key=chance.choice(("C", "F#m", "Bb")))
    return mido.Message("sysex", data=tuple(chance.randrange(128) for _ in range(chance.randint(0, 9))))


class RandomModel(torch.nn.Module):
    """A model without memory or weights. Every token that the grammar allows is equally likely."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.config, self.device = ModelConfig(vocab_size=vocab_size), "cpu"

    def init_state(self, batch: int) -> "Nothing":
        return Nothing()

    def forward(self, input_ids: torch.Tensor, state: "Nothing") -> tuple[torch.Tensor, "Nothing"]:
        return torch.zeros(*input_ids.shape, self.config.vocab_size), state


class Nothing(tuple):
    """The state of `RandomModel`."""

    def rows(self, index: torch.Tensor) -> "Nothing":
        return self


def complete_one(codec: Codec, seed: int, path: Path) -> str:
    """Draw a file, write it to `path` and complete it. Return what is wrong with the result.

    Returns "kept" if nothing is wrong, and "refused: ..." for a prompt in which the codec finds no notes.
    """
    source = random_file(seed)
    source.save(path)
    source = mido.MidiFile(path)
    notes, grid = read_notes(source), BarGrid.from_midi(source)
    chance = random.Random(~seed)
    n_bars = int(grid.bar(notes.start_tick[-1])) + 1 if len(notes) else 1
    context_bars = chance.randint(1, min(n_bars, 400))
    try:
        (completion,) = complete(
            RandomModel(codec.vocab_size), codec, path, context_bars=context_bars, bars=BARS, max_tokens=40,
            sampling=Sampling(seed=seed),
        )  # fmt: skip
    except UserError as error:
        line = grid.lines(context_bars)[-1]
        if (notes.start_tick < line).any() and "that the tokenizer" not in str(error):
            return f"wrongly refused: {error}"
        return "refused: no notes" if not len(notes) else "refused: no notes before the line"
    return check(source, completion, context_bars, int(grid.lines(context_bars)[-1]))


def check(source: mido.MidiFile, completion: Completion, context_bars: int, line: int) -> str:
    """Return what is wrong with a completion of the events of `source` before tick `line`, or "kept"."""
    file = io.BytesIO()
    completion.midi().save(file=file)
    joined = mido.MidiFile(file=io.BytesIO(file.getvalue()))
    if joined.ticks_per_beat != source.ticks_per_beat:
        return "another resolution"
    if completion.context_bars != context_bars or completion.bars != BARS:
        return "another number of bars"
    for own, kept in zip(source.tracks, joined.tracks, strict=False):
        if events_before(own, line) != events_before(kept, line):
            return "another opening"
    used = {channel for track in source.tracks for channel in channels_before(track, line)}
    for added in joined.tracks[len(source.tracks) :]:
        kinds = {message.type for _, message in events_before(added, line)}
        if kinds - {"midi_port"} - (SET_UP if isinstance(completion.codec, Multitrack) else set()):
            return "added events before the line"
        if "program_change" in kinds and not used.isdisjoint(channels_before(added, line)):
            return "another program before the line"
    names_tempo = any("Tempo" in completion.codec.vocabulary[i] for i in completion.new_ids)
    if not names_tempo and any(m.type == "set_tempo" for track in joined.tracks[len(source.tracks) :] for m in track):
        return "another tempo"
    grid, notes = BarGrid.from_midi(joined), read_notes(joined)
    first = int(grid.bar(line))
    lines = grid.lines(first + BARS)[first:]
    if lines[0] != line:
        return "no bar line at the line"
    new = notes.start_tick >= line
    if (notes.start_tick >= lines[-1]).any() or len(notes.start_tick[new]) > completion.codec.count_notes(
        completion.new_ids
    ):
        return "other bars or notes"
    if (notes.end_tick <= notes.start_tick)[new].any():
        return "a note without a length"
    alone = completion.midi_alone()
    if len(read_notes(alone)) != new.sum():
        return "other notes without the prompt"
    return "kept"


def events_before(track: mido.MidiTrack, line: int) -> list[tuple[int, mido.messages.BaseMessage]]:
    """Return (tick, message) of the events before tick `line`."""
    ticks = np.cumsum([message.time for message in track]).tolist()
    timed = zip(ticks, track, strict=True)
    return [(tick, m.copy(time=0)) for tick, m in timed if tick < line and m.type != "end_of_track"]


def channels_before(track: mido.MidiTrack, line: int) -> set[tuple[int, int]]:
    """Return (port, channel) of the channel messages before tick `line`."""
    port, found = 0, set()
    for _, message in events_before(track, line):
        if message.type == "midi_port":
            port = message.port
        elif hasattr(message, "channel") and not message.is_meta:
            found.add((port, message.channel))
    return found


def run(tokenizer: str, seeds: range) -> dict[str, int]:
    """Complete a file for each seed; return how often each result occurred. Failures are printed."""
    torch.set_num_threads(1)
    codec, found = make_codec(tokenizer), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in tqdm(seeds, tokenizer, disable=None):
            try:
                result = complete_one(codec, seed, Path(folder) / "source.mid")
            except Exception:
                traceback.print_exc()
                result = "traceback"
            if result != "kept" and not result.startswith("refused"):
                print(f"{tokenizer}, seed {seed}: {result}", flush=True)
            found[result] += 1
    return dict(found.most_common())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizers", nargs="+", default=["multitrack", "midi-llm"])
    options = parser.parse_args()
    results, start, cores = {}, time.perf_counter(), available_cores()
    seeds = range(options.seed, options.seed + options.files)
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        for tokenizer in options.tokenizers:
            shares = [seeds[i::cores] for i in range(cores)]
            found = sum(map(Counter, pool.map(run, repeat(tokenizer), shares)), Counter())
            results[tokenizer] = dict(found.most_common())
            print(tokenizer, results[tokenizer], flush=True)
    facts = {"files": options.files, "seed": options.seed, "seconds": round(time.perf_counter() - start)}
    report.write("openings", facts | {"results": results})
    return int(any(not (name == "kept" or name.startswith("refused")) for found in results.values() for name in found))


if __name__ == "__main__":
    sys.exit(main())
