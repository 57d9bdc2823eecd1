"""The file format of the MIREX 2025 task "Symbolic Music Generation" (piano continuation).

A prompt is a bar for an upbeat, which may be silent, followed by four bars of piano music in 4/4. The task is to write
twelve more bars. A file is a JSON object with an entry "prompt" or "generation", a list of notes:

    {"prompt": [{"start": 16, "pitch": 72, "duration": 6}, ...]}

`start` and `duration` are integers in sixteenth notes, and `pitch` is a MIDI note number. The upbeat's bar starts at 0,
the first full bar of the prompt at 16, and the generation at 80. The generation ends at 272. Notes that would last
longer are cut there.

Source: the task's page, music-ir.org/mirex/wiki/2025:Symbolic_Music_Generation.
"""

import json
import os

import mido
import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.files import read_json, write_text
from rwkv_music.midi.events import to_track
from rwkv_music.midi.score import ROUNDING, Score

STEPS_PER_QUARTER = 4
BAR = 16  # sixteenth notes
PROMPT_BARS, NEW_BARS = 4, 12
PROMPT_END = (1 + PROMPT_BARS) * BAR
END = PROMPT_END + NEW_BARS * BAR
SPANS = {"prompt": (0, PROMPT_END), "generation": (PROMPT_END, END)}  # the range of note starts in each entry
TICKS_PER_STEP = 120
# The task's notes have no velocity. In most scores that models learn from, notes without dynamics have this velocity.
VELOCITY = 90
FIELDS = ("start", "pitch", "duration")


def read_notes(path: str | os.PathLike, entry: str = "prompt") -> np.ndarray:
    """Return the notes of a file, int64 [n, 3]: (start, pitch, duration), sorted.

    Raises UserError if the file cannot be read, has no list `entry`, or has a note that the task does not allow.
    """
    remedy = f'give a file of the MIREX task, {{"{entry}": [{{"start": 16, "pitch": 72, "duration": 6}}, ...]}}'
    listed = read_json(path, remedy, {entry: list})[entry]
    first, after = SPANS[entry]
    rows = []
    for number, note in enumerate(listed, start=1):
        values = [note.get(field) for field in FIELDS] if isinstance(note, dict) else [None]
        if not all(type(value) is int for value in values):
            raise UserError(f"Note {number} of {path} lacks an integer start, pitch or duration: {remedy}.")
        start, pitch, duration = values
        if not first <= start < after:
            raise UserError(
                f"Note {number} of {path} starts at {start}: give starts from {first} to {after - 1} in a {entry}."
            )
        if not 0 <= pitch <= 127 or duration < 1:
            raise UserError(
                f"Note {number} of {path} has pitch {pitch} and duration {duration}: "
                "give pitches from 0 to 127 and durations from 1."
            )
        rows.append((start, pitch, min(duration, END - start)))
    return np.array(sorted(rows), np.int64).reshape(-1, 3)


def write_notes(path: str | os.PathLike, notes: np.ndarray, entry: str = "generation") -> None:
    """Write notes, int64 [n, 3] as in `read_notes`, to a file. Raises OSError if this fails."""
    listed = [dict(zip(FIELDS, note, strict=True)) for note in notes.tolist()]
    write_text(path, json.dumps({entry: listed}, indent=1) + "\n")


def to_midi(notes: np.ndarray) -> tuple[mido.MidiFile, int]:
    """Return a file with one piano track in 4/4, and the number of bars in it that belong to the prompt.

    There are five such bars, or four if the upbeat's bar is silent, because a silent upbeat is left out. `notes`, int64
    [n, 3], may include notes after the prompt.
    """
    has_upbeat = bool((notes[:, 0] < BAR).any())
    first = 0 if has_upbeat else BAR
    messages = [
        (0, mido.MetaMessage("time_signature", numerator=4, denominator=4)),
        (0, mido.Message("program_change", program=0)),
    ]
    for start, pitch, duration in notes.tolist():
        tick = (start - first) * TICKS_PER_STEP
        messages.append((tick, mido.Message("note_on", note=pitch, velocity=VELOCITY)))
        messages.append((tick + duration * TICKS_PER_STEP, mido.Message("note_off", note=pitch, velocity=0)))
    midi = mido.MidiFile(type=0, ticks_per_beat=STEPS_PER_QUARTER * TICKS_PER_STEP, tracks=[to_track(messages)])
    return midi, PROMPT_BARS + has_upbeat


def has_form(score: Score, context_bars: int, first_bar: int = 0) -> bool:
    """Return whether a piece has `context_bars` + NEW_BARS bars of 4/4 from `first_bar` on."""
    lines = score.lines[first_bar : first_bar + context_bars + NEW_BARS + 1]
    return len(lines) > context_bars + NEW_BARS and bool(
        (np.abs(np.diff(lines) - BAR / STEPS_PER_QUARTER) < ROUNDING).all()
    )


def from_score(score: Score, context_bars: int, first_bar: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompt and the generation in a piece, int64 [n, 3] each, as in `read_notes`.

    The prompt starts with bar `first_bar` and lasts `context_bars` bars of 4/4: four, or five with an upbeat. The
    generation is the music of the twelve bars of 4/4 that follow. Both have the notes of all parts, without drums.
    Times are rounded to sixteenth notes. Of notes with the same pitch and start, the longest is kept.
    """
    notes = score.notes[~score.notes["drums"]]
    first = PROMPT_END - context_bars * BAR
    origin = score.lines[first_bar] * STEPS_PER_QUARTER - first
    start = np.rint(notes["start"] * STEPS_PER_QUARTER - origin).astype(np.int64)
    end = np.minimum(np.rint(notes["end"] * STEPS_PER_QUARTER - origin).astype(np.int64), END)
    rows = np.stack([start, notes["pitch"], np.maximum(end - start, 1)], axis=1)
    rows = rows[(start >= first) & (start < END)]
    rows = rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))]
    rows = rows[np.append(True, (rows[1:, :2] != rows[:-1, :2]).any(axis=1))[: len(rows)]]
    given = rows[:, 0] < PROMPT_END
    return rows[given], rows[~given]


def repeated_prompt(prompt: np.ndarray) -> np.ndarray:
    """Return the copy baseline: the four full bars of the prompt, three times. `prompt` and result are int64 [n, 3]."""
    length = PROMPT_BARS * BAR
    bars = prompt[prompt[:, 0] >= BAR].copy()
    bars[:, 2] = np.minimum(bars[:, 2], PROMPT_END - bars[:, 0])
    return np.concatenate([bars + [length * (i + 1), 0, 0] for i in range(NEW_BARS // PROMPT_BARS)])
