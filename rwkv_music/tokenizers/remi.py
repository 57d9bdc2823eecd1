"""The `remi` codec: MidiTok's REMI, one stream for all instruments, that comes back note for note.

A bar is `Bar TimeSig`, then for each moment `Position`, `Tempo` and `Program` where they change, and `Pitch Velocity
Duration` for each note. Notable choices:
- 24 positions a beat, and durations on the same grid up to 16 beats: values down to a thirty-second of a 4/4 bar and
  their triplets are exact, and the steps are 21 ms at 120 beats a minute.
- `Program` only where the instrument changes, so music for one instrument pays one token a piece, not one a note.
- Quantised notes survive the round trip to MIDI and back exactly. MIDI cannot tell two sounding notes of one pitch and
  instrument apart, so a note is cut where its own pitch starts again, and of two that start together the longer stays.
  Tracks of one instrument are one part, parts go by program, notes of one moment go by pitch: equal music, equal ids.
- A note that the sustain pedal holds lasts until the pedal is let go, or its key is struck again: what is heard, at no
  token's cost. Bends and the other controllers are left out.

Source: Huang and Yang, "Pop Music Transformer" (2020), for REMI; von Rütte et al., "FIGARO" (2022), for several
instruments in one stream; MidiTok (Fradet et al., 2021).
"""

from functools import cached_property
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import mido
import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.events import DRUM_CHANNEL, PEDAL_DOWN, SUSTAIN_PEDAL, RejectedMidi, read_midi, to_track
from rwkv_music.midi.notes import remove_overlaps
from rwkv_music.tokenizers.codec import LONGEST_PIECE_QUARTERS, BarLines, Codec, Piece
from rwkv_music.tokenizers.remi_bpe import BytePairs, Documents, learn_merges
from rwkv_music.tokenizers.remi_grammar import RemiGrammar, RemiRules

if TYPE_CHECKING:
    from miditok import REMI
    from symusic import Score, Track

LONGEST_NOTE_BEATS = 16
FINEST_GRID = 96  # positions a beat: 5 ms at 120 beats a minute
TIME_SIGNATURES = {1: [1, 2, 3, 4], 2: range(1, 13), 4: range(1, 17), 8: range(1, 17), 16: range(1, 17)}
MOST_TOKENS = 1 << 16  # that token files can tell apart
DRUM_PROGRAM = -1
MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


class Remi(Codec):
    """MidiTok's REMI with bars, positions, velocities, durations, tempos, time signatures and programs.

    Args:
        positions_per_beat: the time grid, for onsets and durations; a beat is the time signature's lower number.
        n_velocities: the number of loudness levels.
        merges: pairs of ids that are one token, in the order in which they were learned (see remi_bpe.py).
        vocabulary, libraries: as they were saved; asked of MidiTok when None.
    """

    name = "remi"
    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(
        self,
        positions_per_beat: int = 24,
        n_velocities: int = 32,
        merges: list[list[int]] | None = None,
        vocabulary: list[str] | None = None,
        libraries: dict[str, str] | None = None,
    ):
        if not 1 <= positions_per_beat <= FINEST_GRID:
            raise UserError(f"{positions_per_beat} positions a beat cannot be: choose from 1 to {FINEST_GRID}.")
        if not 1 <= n_velocities <= 127:
            raise UserError(f"{n_velocities} loudness levels cannot be: choose from 1 to 127.")
        self.positions_per_beat = positions_per_beat
        self._library_options = {"positions_per_beat": positions_per_beat, "n_velocities": n_velocities}
        self._merges = [tuple(merge) for merge in merges or []]
        if vocabulary is None or libraries is None:
            base = _vocabulary_of(_make_tokenizer(**self._library_options))
            parts = BytePairs(len(base), self._merges).parts
            vocabulary = [" ".join(base[i] for i in ids) for ids in parts]
            libraries = {package: version(package) for package in ("miditok", "symusic")}
        options = dict(self._library_options)
        if self._merges:
            options["merges"] = [list(merge) for merge in self._merges]
        super().__init__(options, vocabulary, libraries)
        self._opens_bar = np.array([token.startswith("Bar_") for token in self.vocabulary])
        self._n_notes = np.array([token.count("Pitch") for token in self.vocabulary])

    def encode_piece(self, source: Path | bytes) -> Piece:
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
            for track in score.tracks:
                _hold_by_pedal(track)
            score = tokenizer.preprocess_score(score)
            self._tidy(score)
            ids = tokenizer.encode(score, no_preprocess_score=True).ids
        except Exception as error:  # MidiTok does not say what it raises, and one odd file must not end the run
            raise RejectedMidi(f"MidiTok failed ({type(error).__name__})") from error
        return self.merged(np.array([self.bos_id, *ids, self.eos_id], dtype=np.uint16))

    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None) -> mido.MidiFile:
        ids = np.asarray(ids).astype(np.int64)
        if self._merges:
            ids = self._byte_pairs.split(ids)
        ids = ids[~np.isin(ids, [self.pad_id, self.bos_id, self.eos_id])]
        return _to_mido(self._tokenizer.decode(ids.tolist()))

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self._opens_bar[np.asarray(ids)])

    def count_notes(self, ids: np.ndarray) -> int:
        return int(self._n_notes[np.asarray(ids)].sum())

    def grammar(self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False) -> RemiGrammar:
        return RemiGrammar(self._rules, prompt.ids, rows, bars, may_end)

    @cached_property
    def _rules(self) -> RemiRules:
        tokens = [[tuple(part.split("_", 1)) for part in token.split(" ")] for token in self.vocabulary]
        return RemiRules(tokens, self.positions_per_beat)

    def merged(self, ids: np.ndarray) -> Piece:
        """A piece from its ids without merges, uint16 [n]."""
        piece = Piece(ids, self.bar_starts(ids))
        if not self._merges:
            return piece
        ids = self._byte_pairs.merge(ids, piece.bar_starts)
        return Piece(ids, self.bar_starts(ids))

    def with_merges(self, documents: Documents, n: int, vocab_size: int) -> "Remi":
        """This codec with merges learned from `documents`, `n` of them, for a vocabulary of `vocab_size` tokens."""
        self.check_byte_pairs(vocab_size)
        merges = learn_merges(_make_tokenizer(**self._library_options), documents, n, vocab_size)
        return Remi(**self._library_options, merges=[list(merge) for merge in merges])

    def check_byte_pairs(self, vocab_size: int) -> None:
        """A UserError if byte pairs cannot bring this codec to so many tokens, or token files cannot hold them."""
        if not self.vocab_size < vocab_size <= MOST_TOKENS:
            raise UserError(
                f"A vocabulary of {vocab_size:,} tokens leaves no room for byte pairs or is too large: choose from "
                f"{self.vocab_size + 1:,} to {MOST_TOKENS:,}."
            )

    @cached_property
    def _byte_pairs(self) -> BytePairs:
        return BytePairs(self.vocab_size - len(self._merges), self._merges)

    @cached_property
    def _tokenizer(self) -> "REMI":
        tokenizer = _make_tokenizer(**self._library_options)
        if _vocabulary_of(tokenizer) != self.vocabulary[: self.vocab_size - len(self._merges)]:
            wanted = " ".join(f"{package}=={number}" for package, number in self.libraries.items())
            raise UserError(
                f"MidiTok {version('miditok')} numbers tokens differently from the version that made this tokenizer: "
                f"`pip install {wanted}`."
            )
        return tokenizer

    def _tidy(self, score: "Score") -> None:
        """Put a quantised score into the one order and shape that the round trip through MIDI preserves, in place."""
        from symusic import Note

        changes = score.time_signatures.numpy()
        steps = score.ticks_per_quarter * 4 // changes["denominator"].astype(np.int64) // self.positions_per_beat
        for track in score.tracks:
            start, duration, pitch, velocity = _notes_without_overlaps(track)
            # The grid of a note is that of the time signature in which it starts.
            step = steps[np.searchsorted(changes["time"], start, side="right") - 1]
            duration = np.clip(duration // step, 1, LONGEST_NOTE_BEATS * self.positions_per_beat) * step
            track.notes = Note.from_numpy(
                start.astype(np.int32), duration.astype(np.int32), pitch.astype(np.int8), velocity.astype(np.int8)
            )
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
            encode_ids_split="no",  # byte pairs are learned and used on bars that are split here
        )
    )


def _vocabulary_of(tokenizer: "REMI") -> list[str]:
    return sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)


def _hold_by_pedal(track: "Track") -> None:
    """Lengthen the notes of `track` that end under the sustain pedal to where it is let go, in place."""
    controls = track.controls.numpy()
    pedal = controls["number"] == SUSTAIN_PEDAL
    if not pedal.any():
        return
    notes = track.notes.numpy()
    ends = notes["time"].astype(np.int64) + notes["duration"]
    ticks, down = controls["time"][pedal].astype(np.int64), controls["value"][pedal] >= PEDAL_DOWN
    order = np.argsort(ticks, kind="stable")
    ticks, down = ticks[order], down[order]
    # Where the pedal is next up, seen from each of its events; one that is never let go is so at the last note's end.
    never = np.iinfo(np.int64).max
    next_up = np.minimum.accumulate(np.where(down, never, ticks)[::-1])[::-1]
    next_up[next_up == never] = ends.max(initial=0)
    last = np.searchsorted(ticks, ends) - 1  # the last pedal event before a note ends
    held = (last >= 0) & down[last]
    durations = np.where(held, np.maximum(next_up[last], ends), ends) - notes["time"]
    for i in np.flatnonzero(held).tolist():
        track.notes[i].duration = int(durations[i])


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
    midi.tracks.append(to_track(meta))

    melodic_channels = cycle(MELODIC_CHANNELS)
    shared = sum(not track.is_drum for track in score.tracks) > len(MELODIC_CHANNELS)
    for track in sorted(score.tracks, key=_program):
        channel = DRUM_CHANNEL if track.is_drum else next(melodic_channels)
        program = mido.Message("program_change", channel=channel, program=track.program)
        events = [(0, program)]
        for start, duration, pitch, velocity in np.stack(_notes_without_overlaps(track), axis=1).tolist():
            if shared:
                events.append((start, program))
            events.append((start, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)))
            events.append((start + duration, mido.Message("note_off", channel=channel, note=pitch, velocity=0)))
        midi.tracks.append(to_track(events))
    return midi


def _notes_without_overlaps(track: "Track") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    notes = track.notes.numpy()
    return remove_overlaps(notes["time"], notes["duration"], notes["pitch"], notes["velocity"])
