"""Statistics of a MIDI file that do not depend on the tokenizer, and a key that is equal for copies of a piece.

The key is a hash of the intervals between notes, in time (forty-eighths of a quarter note) and in pitch. It does not
depend on the order of the notes, the time resolution, velocities, tempos, instruments, the start time or transposition.
Drums, which cannot be transposed, are hashed separately.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from rwkv_music.midi.events import DRUMS, ParsedMidi, RejectedMidi, parse_midi
from rwkv_music.midi.instruments import played_notes
from rwkv_music.midi.time import BarGrid, TempoMap

STEPS_PER_QUARTER = 48
VELOCITY_BINS = 32
N_PROGRAMS = DRUMS + 1  # General MIDI's programs, then drums
PART_NOTES = 10.0 ** (np.arange(31) / 6)  # edges of logarithmically spaced bins for the number of notes in a part

RECORD = np.dtype(
    [
        ("seconds", "<f4"),
        ("notes", "<u4"),
        ("tempo", "<f4"),
        ("pitch", "<u2", 128),
        ("velocity", "<u2", VELOCITY_BINS),
        ("programs", "u1", (N_PROGRAMS + 7) // 8),
        ("meter", "u1", 2),
        ("part_notes", "<u2", len(PART_NOTES) - 1),
    ]
)


@dataclass(frozen=True)
class MidiStats:
    """The statistics of one piece."""

    seconds: float  # from the start of the first note to the end of the last one
    quarters: float  # the end of the last note, in quarter notes from the start of the file
    notes: int
    tempo: float  # the tempo that lasts longest, in quarter notes per minute
    tracks: int  # number of combinations of track, channel and program that have notes
    programs: np.ndarray  # bool [129]: the General MIDI programs that have notes; the last element is for drums
    pitch: np.ndarray  # int64 [128]: the number of notes of each pitch, without drums
    velocity: np.ndarray  # int64 [32]: the number of notes in each group of four velocities
    meter: tuple[int, int]  # the time signature that lasts longest, (numerator, denominator)
    part_notes: np.ndarray  # int64 [30]: a histogram of the parts by their number of notes, with the bins of PART_NOTES
    key: str  # equal for copies of a piece (see the module docstring); 128 bits in hexadecimal

    def record(self) -> np.ndarray:
        """Return the statistics as one RECORD [1]. Histogram counts are capped at 65,535."""
        pitch, velocity, part_notes = (
            np.minimum(counts, 0xFFFF) for counts in (self.pitch, self.velocity, self.part_notes)
        )
        programs = np.packbits(self.programs)
        row = (self.seconds, self.notes, self.tempo, pitch, velocity, programs, self.meter, part_notes)
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
    start, end = notes.start.min(), notes.end.max()
    microseconds = tempo_map.durations(start, end)
    tracks = np.unique(notes.track << 32 | notes.channel << 8 | notes.program)
    part_sizes = np.unique(notes.track << 32 | notes.channel, return_counts=True)[1]
    bins = np.searchsorted(PART_NOTES[1:-1], part_sizes, side="right")  # the last bin includes larger parts
    return MidiStats(
        seconds=float(microseconds.sum() / 1e6),
        quarters=float(end / midi.ticks_per_quarter),
        notes=len(notes),
        tempo=float(6e7 / max(tempo_map.tempos[microseconds.argmax()], 1.0)),
        tracks=len(tracks),
        programs=programs,
        pitch=np.bincount(notes.pitch[~is_drum], minlength=128),
        velocity=np.bincount(notes.velocity * VELOCITY_BINS // 128, minlength=VELOCITY_BINS),
        meter=BarGrid.from_events(midi.timing, midi.ticks_per_quarter).main_signature(start, end),
        part_notes=np.bincount(bins, minlength=len(PART_NOTES) - 1),
        key=_key(notes.start * STEPS_PER_QUARTER // midi.ticks_per_quarter, notes.pitch, is_drum),
    )


def _key(onset: np.ndarray, pitch: np.ndarray, is_drum: np.ndarray) -> str:
    """Return a hash of the notes that does not depend on transposition, duplicate notes or order."""
    digest = hashlib.blake2b(digest_size=16)
    # Onset and pitch are packed into one number. Differences of such numbers encode both intervals.
    melody = np.unique(onset[~is_drum] * 256 + pitch[~is_drum])
    drums = np.unique(onset[is_drum] * 256 + pitch[is_drum])
    digest.update(np.diff(melody).astype("<i8").tobytes())
    digest.update(b"drums")
    digest.update((drums - onset.min() * 256).astype("<i8").tobytes())
    return digest.hexdigest()
