"""The `remi` codec: MidiTok's REMI with one token stream for all instruments.

A bar is `Bar TimeSig`, followed by its moments. A moment is `Position`, `Tempo` and `Program` where they change, and
`Pitch Velocity Duration` for each note.

Notable choices:
- There are 24 positions per beat (21 ms at 120 beats per minute), and durations of up to 16 beats on the same grid.
  Note values down to a thirty-second note and their triplets are exact.
- Quantized notes are the same after a round trip to MIDI and back. MIDI cannot represent overlapping notes of one pitch
  and instrument, so a note ends where its pitch starts again, and of two that start together the longer is kept.
- Equal music has equal ids: tracks of one instrument are merged, instruments are sorted by program, and simultaneous
  notes of an instrument by pitch.
- A note that the sustain pedal holds lasts until the pedal is released or its pitch starts again. Pitch bends and other
  controllers are dropped.

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
from rwkv_music.tokenizers.codec import MAX_PIECE_QUARTERS, BarLines, Codec, Piece
from rwkv_music.tokenizers.remi_bpe import BytePairs, Documents, learn_merges
from rwkv_music.tokenizers.remi_grammar import RemiGrammar, RemiRules

if TYPE_CHECKING:
    from miditok import REMI
    from symusic import Score, Track

MAX_NOTE_BEATS = 16
MAX_POSITIONS_PER_BEAT = 96  # 5 ms at 120 beats per minute
TIME_SIGNATURES = {1: [1, 2, 3, 4], 2: range(1, 13), 4: range(1, 17), 8: range(1, 17), 16: range(1, 17)}
MAX_VOCAB_SIZE = 1 << 16  # of token files
DRUM_PROGRAM = -1  # in MidiTok
MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


class Remi(Codec):
    """MidiTok's REMI with bars, positions, velocities, durations, tempos, time signatures and programs.

    Args:
        positions_per_beat: resolution of onsets and durations. A beat is the denominator of the time signature.
        n_velocities: number of velocity levels.
        merges: byte-pair merges in the order in which they were learned (see remi_bpe.py).
        vocabulary, libraries: the saved values; None computes them with MidiTok.
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
        if not 1 <= positions_per_beat <= MAX_POSITIONS_PER_BEAT:
            raise UserError(f"positions_per_beat is {positions_per_beat}; choose from 1 to {MAX_POSITIONS_PER_BEAT}.")
        if not 1 <= n_velocities <= 127:
            raise UserError(f"n_velocities is {n_velocities}; choose from 1 to 127.")
        self.positions_per_beat = positions_per_beat
        self._miditok_options = {"positions_per_beat": positions_per_beat, "n_velocities": n_velocities}
        self._merges = [tuple(merge) for merge in merges or []]
        if vocabulary is None or libraries is None:
            base = _miditok_vocabulary(_make_miditok(**self._miditok_options))
            parts = BytePairs(len(base), self._merges).parts
            vocabulary = [" ".join(base[i] for i in ids) for ids in parts]
            libraries = {package: version(package) for package in ("miditok", "symusic")}
        merges_option = {"merges": [list(merge) for merge in self._merges]} if self._merges else {}
        super().__init__(self._miditok_options | merges_option, vocabulary, libraries)
        self._starts_bar = np.array([token.startswith("Bar_") for token in self.vocabulary])
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
        if score.start() < 0 or score.end() > MAX_PIECE_QUARTERS * score.ticks_per_quarter:
            raise RejectedMidi(f"longer than {MAX_PIECE_QUARTERS:,} quarter notes")
        tokenizer = self._miditok
        try:
            for track in score.tracks:
                _hold_by_pedal(track)
            score = tokenizer.preprocess_score(score)
            self._normalize(score)
            ids = tokenizer.encode(score, no_preprocess_score=True).ids
        except Exception as error:  # MidiTok does not document its exceptions, and one file must not stop `prepare`
            raise RejectedMidi(f"MidiTok failed ({type(error).__name__})") from error
        return self.apply_merges(np.array([self.bos_id, *ids, self.eos_id], dtype=np.uint16))

    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None) -> mido.MidiFile:
        ids = np.asarray(ids).astype(np.int64)
        if self._merges:
            ids = self._byte_pairs.split(ids)
        ids = ids[~np.isin(ids, [self.pad_id, self.bos_id, self.eos_id])]
        return _to_mido(self._miditok.decode(ids.tolist()))

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self._starts_bar[np.asarray(ids)])

    def count_notes(self, ids: np.ndarray) -> int:
        return int(self._n_notes[np.asarray(ids)].sum())

    def grammar(self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False) -> RemiGrammar:
        return RemiGrammar(self._rules, prompt.ids, rows, bars, may_end)

    @cached_property
    def _rules(self) -> RemiRules:
        tokens = [[tuple(part.split("_", 1)) for part in token.split(" ")] for token in self.vocabulary]
        return RemiRules(tokens, self.positions_per_beat)

    def apply_merges(self, ids: np.ndarray) -> Piece:
        """Return the piece with the given ids before merging, uint16 [n]."""
        if self._merges:
            ids = self._byte_pairs.merge(ids, self.bar_starts(ids))
        return Piece(ids, self.bar_starts(ids))

    def with_merges(self, documents: Documents, n: int, vocab_size: int) -> "Remi":
        """Return this codec with merges learned from the `n` pieces of `documents`, for `vocab_size` tokens.

        Raises UserError if `vocab_size` is too small or too large.
        """
        self.check_byte_pairs(vocab_size)
        merges = learn_merges(_make_miditok(**self._miditok_options), documents, n, vocab_size)
        return Remi(**self._miditok_options, merges=[list(merge) for merge in merges])

    def check_byte_pairs(self, vocab_size: int) -> None:
        """Raise UserError unless merges can enlarge this vocabulary to `vocab_size` tokens."""
        if not self.vocab_size < vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(
                f"A vocabulary with byte pairs cannot have {vocab_size:,} tokens; choose from {self.vocab_size + 1:,} "
                f"to {MAX_VOCAB_SIZE:,}."
            )

    @cached_property
    def _byte_pairs(self) -> BytePairs:
        return BytePairs(self.vocab_size - len(self._merges), self._merges)

    @cached_property
    def _miditok(self) -> "REMI":
        tokenizer = _make_miditok(**self._miditok_options)
        if _miditok_vocabulary(tokenizer) != self.vocabulary[: self.vocab_size - len(self._merges)]:
            packages = " ".join(f"{package}=={number}" for package, number in self.libraries.items())
            raise UserError(
                f"MidiTok {version('miditok')} numbers tokens differently from the version that created this "
                f"tokenizer; run `pip install {packages}`."
            )
        return tokenizer

    def _normalize(self, score: "Score") -> None:
        """Remove overlaps, limit durations and sort tracks in place, so that the score survives a MIDI round trip."""
        from symusic import Note

        changes = score.time_signatures.numpy()
        steps = score.ticks_per_quarter * 4 // changes["denominator"].astype(np.int64) // self.positions_per_beat
        for track in score.tracks:
            start, duration, pitch, velocity = _notes_without_overlaps(track)
            # A step depends on the time signature at the start of the note.
            step = steps[np.searchsorted(changes["time"], start, side="right") - 1]
            duration = np.clip(duration // step, 1, MAX_NOTE_BEATS * self.positions_per_beat) * step
            track.notes = Note.from_numpy(
                start.astype(np.int32), duration.astype(np.int32), pitch.astype(np.int8), velocity.astype(np.int8)
            )
        score.tracks = sorted(score.tracks, key=_program)


def _make_miditok(positions_per_beat: int, n_velocities: int) -> "REMI":
    try:
        from miditok import REMI, TokenizerConfig
    except ImportError as error:
        raise UserError(
            "The remi tokenizer needs MidiTok, which is not installed; run `pip install miditok`."
        ) from error
    return REMI(
        TokenizerConfig(
            special_tokens=["PAD", "BOS", "EOS"],
            pitch_range=(0, 127),
            drums_pitch_range=(0, 127),
            beat_res={(0, MAX_NOTE_BEATS): positions_per_beat},
            num_velocities=n_velocities,
            use_tempos=True,
            tempo_range=(30, 480),  # 16 steps per octave: 60, 120 and 240 are exact, others within 2.2%
            num_tempos=65,
            log_tempos=True,
            delete_equal_successive_tempo_changes=True,
            use_time_signatures=True,
            time_signature_range={denominator: list(numerators) for denominator, numerators in TIME_SIGNATURES.items()},
            delete_equal_successive_time_sig_changes=True,
            use_programs=True,
            one_token_stream_for_programs=True,
            program_changes=True,
            encode_ids_split="no",  # remi_bpe.py splits the bars itself
        )
    )


def _miditok_vocabulary(tokenizer: "REMI") -> list[str]:
    return sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)


def _hold_by_pedal(track: "Track") -> None:
    """Extend the notes of `track` that end while the sustain pedal is down to its release, in place."""
    controls = track.controls.numpy()
    pedal = controls["number"] == SUSTAIN_PEDAL
    if not pedal.any():
        return
    notes = track.notes.numpy()
    ends = notes["time"].astype(np.int64) + notes["duration"]
    ticks, down = controls["time"][pedal].astype(np.int64), controls["value"][pedal] >= PEDAL_DOWN
    order = np.argsort(ticks, kind="stable")
    ticks, down = ticks[order], down[order]
    # The next release after each pedal event. A pedal that is never released is released where the last note ends.
    never = np.iinfo(np.int64).max
    next_release = np.minimum.accumulate(np.where(down, never, ticks)[::-1])[::-1]
    next_release[next_release == never] = ends.max(initial=0)
    last = np.searchsorted(ticks, ends) - 1  # the last pedal event before each note ends
    held = (last >= 0) & down[last]
    durations = np.where(held, np.maximum(next_release[last], ends), ends) - notes["time"]
    for i in np.flatnonzero(held).tolist():
        track.notes[i].duration = int(durations[i])


def _program(track: "Track") -> int:
    return DRUM_PROGRAM if track.is_drum else track.program


def _to_mido(score: "Score") -> mido.MidiFile:
    """Return a score as a format 1 file: a track of tempos and time signatures, then one track per program.

    More than fifteen melodic programs share channels. In that case each note is preceded by a program change.
    """
    midi = mido.MidiFile(type=1, ticks_per_beat=score.ticks_per_quarter)
    meta = [(change.time, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(change.tempo))) for change in score.tempos]
    for s in score.time_signatures:
        message = mido.MetaMessage("time_signature", numerator=s.numerator, denominator=s.denominator)
        meta.append((s.time, message))
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
