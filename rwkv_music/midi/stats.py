"""Statistics of a MIDI file that do not depend on the tokenizer, filters on these statistics, and a key to find copies.

The key hashes the intervals between notes, in time (forty-eighths of a quarter note) and in pitch. It does not depend
on the order of the notes, the time resolution, velocities, tempos, instruments, the start time or transposition. Drums
cannot be transposed and are hashed separately.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.events import DRUMS, ParsedMidi, RejectedMidi, parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.time import TempoMap

STEPS_PER_QUARTER = 48
VELOCITY_BINS = 32
N_PROGRAMS = DRUMS + 1  # General MIDI's programs, then drums

RECORD = np.dtype(
    [
        ("seconds", "<f4"),
        ("notes", "<u4"),
        ("tempo", "<f4"),
        ("pitch", "<u2", 128),
        ("velocity", "<u2", VELOCITY_BINS),
        ("programs", "u1", (N_PROGRAMS + 7) // 8),
    ]
)


@dataclass(frozen=True)
class MidiStats:
    """The statistics of one piece."""

    seconds: float  # from the start of the first note to the end of the last one
    notes: int
    tempo: float  # the tempo that lasts longest, in quarter notes per minute
    tracks: int  # combinations of track, channel and program that have notes
    programs: np.ndarray  # bool [129]: the General MIDI programs that play; the last one is drums
    pitch: np.ndarray  # int64 [128]: the number of notes of each pitch, without drums
    velocity: np.ndarray  # int64 [32]: the number of notes in each group of four velocities
    key: str  # 128 bits as hex

    def record(self) -> np.ndarray:
        """Return the statistics as one RECORD [1]. Histogram counts are capped at 65,535."""
        counts = [np.minimum(counts, 0xFFFF) for counts in (self.pitch, self.velocity)]
        row = (self.seconds, self.notes, self.tempo, *counts, np.packbits(self.programs))
        return np.array([row], RECORD)


def compute_stats(source: bytes | ParsedMidi) -> MidiStats:
    """Compute the statistics of a MIDI file. Raises RejectedMidi if it is damaged or has no notes."""
    midi = parse_midi(source)
    notes = played_notes(midi)
    if not len(notes):
        raise RejectedMidi("no notes")
    is_drum = notes.program == DRUMS
    programs = np.zeros(N_PROGRAMS, bool)
    programs[notes.program] = True
    tempo_map = TempoMap.from_events(midi.timing, midi.ticks_per_quarter)
    microseconds = tempo_map.durations(notes.start.min(), notes.end.max())
    return MidiStats(
        seconds=float(microseconds.sum() / 1e6),
        notes=len(notes),
        tempo=float(6e7 / max(tempo_map.tempos[microseconds.argmax()], 1.0)),
        tracks=len(set(zip(notes.track.tolist(), notes.channel.tolist(), notes.program.tolist(), strict=True))),
        programs=programs,
        pitch=np.bincount(notes.pitch[~is_drum], minlength=128),
        velocity=np.bincount(notes.velocity * VELOCITY_BINS // 128, minlength=VELOCITY_BINS),
        key=_key(notes.start * STEPS_PER_QUARTER // midi.ticks_per_quarter, notes.pitch, is_drum),
    )


def _key(onset: np.ndarray, pitch: np.ndarray, is_drum: np.ndarray) -> str:
    """Hash the notes so that transposition, repetition and order do not matter."""
    digest = hashlib.blake2b(digest_size=16)
    # Onset and pitch are packed into one number, whose differences encode both intervals.
    melody = np.unique(onset[~is_drum] * 256 + pitch[~is_drum])
    drums = np.unique(onset[is_drum] * 256 + pitch[is_drum])
    digest.update(np.diff(melody).astype("<i8").tobytes())
    digest.update(b"drums")
    digest.update((drums - onset.min() * 256).astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Filters:
    """Conditions that a piece must meet to be kept. Bounds are (minimum, maximum), inclusive; None accepts everything.

    A piece is rejected if it has a program that is not in `programs`.
    """

    seconds: tuple[float, float] | None = None
    notes_per_second: tuple[float, float] | None = None
    tracks: tuple[float, float] | None = None
    programs: tuple[int, ...] | None = None  # General MIDI's 0..127, and 128 for drums

    def __post_init__(self) -> None:
        for name in ("seconds", "notes_per_second", "tracks"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise UserError(f"The bounds of {name} are {bounds[0]:g}:{bounds[1]:g}; give the minimum first.")
        if self.programs is not None and not all(0 <= program < N_PROGRAMS for program in self.programs):
            raise UserError("Programs must be numbers from 0 to 127, or 128 for drums.")

    def reason(self, piece: MidiStats) -> str | None:
        """Return why a piece is rejected, or None if it is kept."""
        density = piece.notes / max(piece.seconds, 1e-3)
        for bounds, value, less, more, unit in (
            (self.seconds, piece.seconds, "shorter", "longer", " s"),
            (self.notes_per_second, density, "sparser", "denser", " notes/s"),
            (self.tracks, piece.tracks, "fewer", "more", " tracks"),
        ):
            if bounds is not None and value < bounds[0]:
                return f"{less} than {bounds[0]:g}{unit}"
            if bounds is not None and value > bounds[1]:
                return f"{more} than {bounds[1]:g}{unit}"
        if self.programs is not None and set(np.flatnonzero(piece.programs).tolist()) - set(self.programs):
            return "other programs"
        return None

    def as_options(self) -> dict:
        """Return the filters that are set as JSON values for dataset.json, with null for infinite bounds."""
        return {
            name: [None if number == float("inf") else number for number in value]
            for name, value in asdict(self).items()
            if value is not None
        }
