"""What a piece is like, whatever tokenizer it meets: length, density, instruments, histograms, and a key of its music.

The key is the same for two files that hold the same notes: in another order or another resolution, at another loudness
or tempo, with other instruments, later or transposed. It hashes the intervals between notes, in time (to a
forty-eighth of a quarter note) and in pitch; drums, which cannot be transposed, by themselves.
"""

import hashlib
from dataclasses import asdict, dataclass

import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.events import RejectedMidi, read_midi

STEPS_PER_QUARTER = 48
VELOCITY_BINS = 32
N_PROGRAMS = 129  # General MIDI's, and drums as the last
DRUMS = 128
DEFAULT_TEMPO = 500_000  # microseconds a quarter note

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
    """What one piece is like.

    Attributes:
        seconds: from the first note's beginning to the last one's end.
        notes: how many.
        tempo: quarter notes a minute, the one that lasts longest.
        tracks: parts with notes: each track, channel and program by itself.
        programs: bool [129], which General MIDI programs play; drums are the last.
        pitch: int64 [128], notes of each pitch, drums not counted.
        velocity: int64 [32], notes of each four velocities.
        key: hex, 128 bits: of the music, the same for copies and transpositions.
    """

    seconds: float
    notes: int
    tempo: float
    tracks: int
    programs: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    key: str

    def record(self) -> np.ndarray:
        """The figures as one RECORD, histograms cut off at 65,535."""
        counts = [np.minimum(counts, 0xFFFF) for counts in (self.pitch, self.velocity)]
        row = (self.seconds, self.notes, self.tempo, *counts, np.packbits(self.programs))
        return np.array([row], RECORD)


def survey(data: bytes) -> MidiStats:
    """What the bytes of a MIDI file hold; RejectedMidi if that is no music."""
    try:
        from symusic import Score
    except ImportError as error:
        raise UserError("Preparing data needs symusic, which is not installed: `pip install symusic`.") from error

    try:
        score = Score.from_midi(read_midi(data))
    except RuntimeError as error:
        raise RejectedMidi("damaged events") from error
    tracks = [track for track in score.tracks if len(track.notes)]
    if not tracks:
        raise RejectedMidi("no notes")
    columns = [track.notes.numpy() for track in tracks]
    start, duration, pitch, velocity = (
        np.concatenate([notes[name] for notes in columns]).astype(np.int64)
        for name in ("time", "duration", "pitch", "velocity")
    )
    is_drum = np.repeat([track.is_drum for track in tracks], [len(track.notes) for track in tracks])
    programs = np.zeros(N_PROGRAMS, bool)
    programs[[DRUMS if track.is_drum else track.program for track in tracks]] = True
    ends = np.array([start.min(), (start + duration).max()])
    seconds, tempo = _time(score, ends)
    return MidiStats(
        seconds=seconds,
        notes=len(start),
        tempo=tempo,
        tracks=len(tracks),
        programs=programs,
        pitch=np.bincount(pitch[~is_drum], minlength=128),
        velocity=np.bincount(velocity * VELOCITY_BINS // 128, minlength=VELOCITY_BINS),
        key=_key(start * STEPS_PER_QUARTER // score.ticks_per_quarter, pitch, is_drum),
    )


def _time(score, ends: np.ndarray) -> tuple[float, float]:
    """(seconds between two ticks, the tempo in quarter notes a minute that lasts longest between them)."""
    changes = score.tempos.numpy()
    ticks, tempos = changes["time"].astype(np.int64), changes["mspq"].astype(np.float64)
    order = np.argsort(ticks, kind="stable")
    ticks, tempos = np.append(0, ticks[order]), np.append(DEFAULT_TEMPO, tempos[order])
    lengths = np.diff(np.clip(np.append(ticks, ends[1]), *ends))
    microseconds = lengths * tempos / score.ticks_per_quarter
    longest = tempos[microseconds.argmax()]
    return float(microseconds.sum() / 1e6), float(6e7 / max(longest, 1.0))


def _key(onset: np.ndarray, pitch: np.ndarray, is_drum: np.ndarray) -> str:
    """The hash of what is left of notes when transposition, repetition and order are taken away."""
    digest = hashlib.blake2b(digest_size=16)
    # Onset and pitch in one number, of which the differences tell both of theirs.
    melody = np.unique(onset[~is_drum] * 256 + pitch[~is_drum])
    drums = np.unique(onset[is_drum] * 256 + pitch[is_drum])
    digest.update(np.diff(melody).astype("<i8").tobytes())
    digest.update(b"drums")
    if len(drums):
        first = onset.min() * 256
        digest.update((drums - first).astype("<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Filters:
    """Which pieces to keep: bounds are (least, most), both allowed; None keeps all.

    Attributes:
        seconds: how long.
        notes_per_second: how dense.
        tracks: how many parts.
        programs: the General MIDI programs, 0..127, and 128 for drums, that may play; a piece with another is left out.
    """

    seconds: tuple[float, float] | None = None
    notes_per_second: tuple[float, float] | None = None
    tracks: tuple[float, float] | None = None
    programs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "notes_per_second", "tracks"):
            bounds = getattr(self, name)
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise UserError(f"The bounds of {name} are {bounds[0]:g}:{bounds[1]:g}: give the smaller one first.")
        if self.programs is not None and not all(0 <= program < N_PROGRAMS for program in self.programs):
            raise UserError("A program is a number from 0 to 127, or 128 for drums: give such numbers alone.")

    def reason(self, piece: MidiStats) -> str | None:
        """Why a piece is left out, None if it stays."""
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
        """The filters that are set, as dataset.json names them; a bound that is infinite is null."""
        return {
            name: [None if number == float("inf") else number for number in value]
            for name, value in asdict(self).items()
            if value is not None
        }
