"""The `remi` codec: MidiTok's REMI, one stream for all instruments, that comes back note for note.

A bar is `Bar TimeSig`, then for each moment `Position`, `Tempo` and `Program` where they change, and `Pitch Velocity
Duration` for each note. Notable choices:
- 24 positions a beat, and durations on the same grid up to 16 beats: values down to a thirty-second of a 4/4 bar and
  their triplets are exact, and the steps are 21 ms at 120 beats a minute.
- `Program` only where the instrument changes, so music for one instrument pays one token a piece, not one a note.
- Quantised notes survive the round trip to MIDI and back exactly. MIDI cannot tell two sounding notes of one pitch and
  instrument apart, so a note is cut where its own pitch starts again, and of two that start together the longer stays.
  Tracks of one instrument are one part, parts go by program, notes of one moment go by pitch: equal music, equal ids.
- Pedals, bends and controllers are left out.

Source: Huang and Yang, "Pop Music Transformer" (2020), for REMI; von Rütte et al., "FIGARO" (2022), for several
instruments in one stream; MidiTok (Fradet et al., 2021).
"""

from bisect import bisect_right
from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import mido
import numpy as np

from rwkv_music.data.codecs import Codec, RejectedMidi, read_midi
from rwkv_music.errors import UserError

if TYPE_CHECKING:
    from miditok import REMI
    from symusic import Note, Score, Track

LONGEST_NOTE_BEATS = 16
LONGEST_PIECE_QUARTERS = 20_000  # 2 h 45 min at 120 a minute; a stray event at a far tick would be that many bars
TIME_SIGNATURES = {1: [1, 2, 3, 4], 2: range(1, 13), 4: range(1, 17), 8: range(1, 17), 16: range(1, 17)}
DRUM_PROGRAM = -1
DRUM_CHANNEL = 9
MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


class Remi(Codec):
    """MidiTok's REMI with bars, positions, velocities, durations, tempos, time signatures and programs.

    Args:
        positions_per_beat: the time grid, for onsets and durations; a beat is the time signature's lower number.
        n_velocities: the number of loudness levels.
        vocabulary, libraries: as they were saved; asked of MidiTok when None.
    """

    name = "remi"
    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(
        self,
        positions_per_beat: int = 24,
        n_velocities: int = 32,
        vocabulary: list[str] | None = None,
        libraries: dict[str, str] | None = None,
    ):
        self.positions_per_beat = positions_per_beat
        options = {"positions_per_beat": positions_per_beat, "n_velocities": n_velocities}
        if vocabulary is None or libraries is None:
            vocabulary = _vocabulary_of(_make_tokenizer(**options))
            libraries = {package: version(package) for package in ("miditok", "symusic")}
        super().__init__(options, vocabulary, libraries)
        kinds = np.array([token.split("_")[0] for token in self.vocabulary])
        self._is_bar = kinds == "Bar"
        self._is_note = np.isin(kinds, ["Pitch", "PitchDrum"])

    def encode(self, source: Path | bytes) -> np.ndarray:
        from symusic import Score

        data = read_midi(source)
        try:
            score = Score.from_midi(data)
        except RuntimeError as error:
            raise RejectedMidi("damaged events") from error
        if score.note_num() == 0:
            raise RejectedMidi("no notes")
        if score.start() < 0 or score.end() > LONGEST_PIECE_QUARTERS * score.ticks_per_quarter:
            raise RejectedMidi(f"longer than {LONGEST_PIECE_QUARTERS:,} quarter notes")
        tokenizer = self._tokenizer
        try:
            score = tokenizer.preprocess_score(score)
            self._tidy(score)
            ids = tokenizer.encode(score, no_preprocess_score=True).ids
        except Exception as error:  # MidiTok does not say what it raises, and one odd file must not end the run
            raise RejectedMidi(f"MidiTok failed ({type(error).__name__})") from error
        return np.array([self.bos_id, *ids, self.eos_id], dtype=np.uint16)

    def decode(self, ids: np.ndarray) -> mido.MidiFile:
        ids = np.asarray(ids).astype(np.int64)
        ids = ids[~np.isin(ids, [self.pad_id, self.bos_id, self.eos_id])]
        return _to_mido(self._tokenizer.decode(ids.tolist()))

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self._is_bar[np.asarray(ids)])

    def count_notes(self, ids: np.ndarray) -> int:
        return int(self._is_note[np.asarray(ids)].sum())

    @cached_property
    def _tokenizer(self) -> "REMI":
        tokenizer = _make_tokenizer(**self.options)
        if _vocabulary_of(tokenizer) != self.vocabulary:
            wanted = " ".join(f"{package}=={number}" for package, number in self.libraries.items())
            raise UserError(
                f"MidiTok {version('miditok')} numbers tokens differently from the version that made this tokenizer: "
                f"`pip install {wanted}`."
            )
        return tokenizer

    def _tidy(self, score: "Score") -> None:
        """Put a quantised score into the one order and shape that the round trip through MIDI preserves, in place."""
        from symusic import Note

        changes = list(score.time_signatures)
        change_ticks = [change.time for change in changes]
        longest = LONGEST_NOTE_BEATS * self.positions_per_beat
        for track in score.tracks:
            notes = []
            for start, duration, pitch, velocity in _separated(track.notes):
                # The grid of a note is that of the time signature in which it starts.
                beat = changes[bisect_right(change_ticks, start) - 1].denominator
                step = score.ticks_per_quarter * 4 // beat // self.positions_per_beat
                steps = min(max(duration // step, 1), longest)
                notes.append(Note(start, steps * step, pitch, velocity))
            track.notes = notes
        score.tracks = sorted(score.tracks, key=_program)


def _make_tokenizer(positions_per_beat: int, n_velocities: int) -> "REMI":
    try:
        from miditok import REMI, TokenizerConfig
    except ImportError as error:
        raise UserError("The remi tokenizer needs MidiTok, which is not installed: `pip install miditok`.") from error
    return REMI(
        TokenizerConfig(
            special_tokens=["PAD", "BOS", "EOS"],
            pitch_range=(0, 127),
            drums_pitch_range=(0, 127),
            beat_res={(0, LONGEST_NOTE_BEATS): positions_per_beat},
            num_velocities=n_velocities,
            use_tempos=True,
            tempo_range=(30, 480),  # four octaves of sixteen steps: 60, 120 and 240 are exact, the rest within 2.2%
            num_tempos=65,
            log_tempos=True,
            delete_equal_successive_tempo_changes=True,
            use_time_signatures=True,
            time_signature_range={denominator: list(tops) for denominator, tops in TIME_SIGNATURES.items()},
            delete_equal_successive_time_sig_changes=True,
            use_programs=True,
            one_token_stream_for_programs=True,
            program_changes=True,
        )
    )


def _vocabulary_of(tokenizer: "REMI") -> list[str]:
    return sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)


def _program(track: "Track") -> int:
    return DRUM_PROGRAM if track.is_drum else track.program


def _to_mido(score: "Score") -> mido.MidiFile:
    """A score as a format 1 file: a track of tempos and time signatures, then one track a program.

    Beyond fifteen melodic programs channels are shared, and each note then names its program again.
    """
    midi = mido.MidiFile(type=1, ticks_per_beat=score.ticks_per_quarter)
    meta = [(change.time, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(change.tempo))) for change in score.tempos]
    meta += [
        (change.time, mido.MetaMessage("time_signature", numerator=change.numerator, denominator=change.denominator))
        for change in score.time_signatures
    ]
    midi.tracks.append(_to_track(meta))

    melodic_channels = cycle(MELODIC_CHANNELS)
    shared = sum(not track.is_drum for track in score.tracks) > len(MELODIC_CHANNELS)
    for track in sorted(score.tracks, key=_program):
        channel = DRUM_CHANNEL if track.is_drum else next(melodic_channels)
        program = mido.Message("program_change", channel=channel, program=track.program)
        events = [(0, program)]
        for start, duration, pitch, velocity in _separated(track.notes):
            if shared:
                events.append((start, program))
            events.append((start, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)))
            events.append((start + duration, mido.Message("note_off", channel=channel, note=pitch, velocity=0)))
        midi.tracks.append(_to_track(events))
    return midi


def _separated(notes: "Iterable[Note]") -> list[tuple[int, int, int, int]]:
    """(start, duration, pitch, velocity) of one instrument's notes, in order, no pitch sounding twice at once.

    A note ends where its pitch starts again; of several that start together the longest stays, then the loudest.
    """
    kept = []
    next_start: dict[int, int] = {}
    for start, duration, pitch, velocity in sorted(
        ((note.time, note.duration, note.pitch, note.velocity) for note in notes), reverse=True
    ):
        upcoming = next_start.get(pitch)
        if upcoming == start:
            continue
        if upcoming is not None:
            duration = min(duration, upcoming - start)
        next_start[pitch] = start
        kept.append((start, duration, pitch, velocity))
    return sorted(kept, key=lambda note: (note[0], note[2]))


def _to_track(events: list[tuple[int, mido.Message | mido.MetaMessage]]) -> mido.MidiTrack:
    """Events at absolute ticks as a track of delta times; at one tick notes end before anything else happens."""
    track = mido.MidiTrack()
    now = 0
    for tick, message in sorted(events, key=lambda event: (event[0], event[1].type != "note_off")):
        track.append(message.copy(time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track"))
    return track
