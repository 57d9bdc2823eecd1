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

import re
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from importlib.metadata import version
from itertools import cycle
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

import mido
import numpy as np

from rwkv_music.errors import UserError
from rwkv_music.midi.events import (
    DRUM_CHANNEL,
    DRUMS,
    TEMPO,
    ParsedMidi,
    RejectedMidi,
    parse_midi,
    to_track,
)
from rwkv_music.midi.instruments import PlayedNotes, ends_by_pedal, played_notes
from rwkv_music.midi.notes import remove_overlaps
from rwkv_music.midi.time import BarGrid
from rwkv_music.tokenizers.codec import EMPTY_NOTES, MAX_PIECE_QUARTERS, BarLines, Codec, Piece
from rwkv_music.tokenizers.remi_bpe import BytePairs, Documents, learn_merges
from rwkv_music.tokenizers.remi_grammar import RemiGrammar, RemiRules
from rwkv_music.tokenizers.vocabulary import NONE, Vocabulary, ranks

if TYPE_CHECKING:
    from miditok import REMI
    from symusic import Score, Track

MAX_NOTE_BEATS = 16
MAX_POSITIONS_PER_BEAT = 96  # 5 ms at 120 beats per minute
TIME_SIGNATURES = {1: [1, 2, 3, 4], 2: range(1, 13), 4: range(1, 17), 8: range(1, 17), 16: range(1, 17)}
MAX_TICK = (1 << 30) - 1  # MidiTok computes with 32 bits
TEMPO_RANGE, N_TEMPOS = (30, 480), 65  # 16 steps per octave: 60, 120 and 240 are exact, others within 2.2%
SINGLE_TOKEN = re.compile(r"[A-Za-z]+_(None|[-0-9./]+)")  # a token that is not a merge of several
MAX_VOCAB_SIZE = 1 << 16  # of token files
DRUM_PROGRAM = -1  # in MidiTok
MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]

# Reasons in `Piece.lost`
DOUBLE_NOTES = "notes that double another note"
OTHER_METERS = "time signatures that the vocabulary lacks"

Meter = tuple[int, int, int]  # (tick, numerator, denominator)


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

    def encode_piece(self, source: Path | bytes | ParsedMidi) -> Piece:
        midi = parse_midi(source)
        notes = played_notes(midi)
        if not len(notes):
            raise RejectedMidi("no notes")
        # Late tempos and time signatures would create bars as well.
        last = max(notes.end.max(), *(event[0] for event in midi.timing), 0)
        if last > min(MAX_PIECE_QUARTERS * midi.ticks_per_quarter, MAX_TICK):
            raise RejectedMidi(f"longer than {MAX_PIECE_QUARTERS:,} quarter notes")
        tokenizer = self._miditok
        try:
            meters, n_lost_meters = _meters(midi)
            score = tokenizer.preprocess_score(_to_score(midi, notes, meters))
            self._normalize(score)
            ids = tokenizer.encode(score, no_preprocess_score=True).ids
        except Exception as error:  # MidiTok does not document its exceptions, and one file must not stop `prepare`
            raise RejectedMidi(f"MidiTok failed ({type(error).__name__})") from error
        piece = self.apply_merges(np.array([self.bos_id, *ids, self.eos_id], dtype=np.uint16))
        lost = {DOUBLE_NOTES: len(notes) - self.count_notes(piece.ids), OTHER_METERS: n_lost_meters}
        lost[EMPTY_NOTES] = notes.n_without_length
        return replace(piece, lost={reason: n for reason, n in lost.items() if n})

    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None) -> mido.MidiFile:
        ids = np.asarray(ids).astype(np.int64)
        if self._merges:
            ids = self._byte_pairs.split(ids)
        ids = ids[~np.isin(ids, [self.pad_id, self.bos_id, self.eos_id])]
        return _to_mido(self._miditok.decode(ids.tolist()))

    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        return np.flatnonzero(self._starts_bar[np.asarray(ids)])

    def excerpt(self, ids: np.ndarray, start: int, split: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        before, opening, rest = ids[:start], ids[start:split], ids[split:stop]
        vocabulary = self.token_properties
        if not vocabulary.is_onset[before].any():
            return ids[:split], rest
        places = np.flatnonzero(vocabulary.kinds[opening] == "Position")
        if len(places):
            at = int(places[0]) + 1
            for kind in ("Tempo", "Program"):
                if at < len(opening) and vocabulary.kinds[opening[at]] == kind:
                    at += 1
                    continue
                in_force = before[vocabulary.kinds[before] == kind][-1:]
                opening = np.concatenate([opening[:at], in_force, opening[at:]])
                at += len(in_force)
        return np.concatenate([[self.bos_id], opening]), rest

    def count_notes(self, ids: np.ndarray) -> int:
        return int(self._n_notes[np.asarray(ids)].sum())

    def grammar(self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False) -> RemiGrammar:
        return RemiGrammar(self._rules, prompt.ids, rows, bars, may_end)

    @cached_property
    def token_properties(self) -> Vocabulary:
        parts = [
            token.split("_", 1) if SINGLE_TOKEN.fullmatch(token) else ["Compound", token] for token in self.vocabulary
        ]
        kinds = np.array([kind for kind, _ in parts])
        V = len(parts)
        pitch, program, velocity, bpm = (np.full(V, NONE), np.full(V, NONE), np.full(V, np.nan), np.full(V, np.nan))
        for i, (kind, value) in enumerate(parts):
            if kind in ("Pitch", "PitchDrum"):
                pitch[i] = int(value)
            if kind == "PitchDrum":
                program[i] = DRUMS
            elif kind == "Program":
                program[i] = int(value) if int(value) >= 0 else DRUMS
            elif kind == "Velocity":
                velocity[i] = float(value)
            elif kind == "Tempo":
                bpm[i] = float(value)
        return Vocabulary(
            kinds=kinds,
            pitch=pitch,
            is_onset=pitch != NONE,
            program=program,
            part=np.full(V, NONE),
            loudness=ranks(velocity),
            tempo=ranks(bpm),
            tempo_steps_per_octave=(N_TEMPOS - 1) / log2(TEMPO_RANGE[1] / TEMPO_RANGE[0]),
            wait_ms=np.full(V, NONE),
            compound=bool((kinds == "Compound").any()),
            unknown_tag=np.full(V, NONE),
        )

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
            tempo_range=TEMPO_RANGE,
            num_tempos=N_TEMPOS,
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


def _to_score(midi: ParsedMidi, notes: PlayedNotes, meters: list[Meter]) -> "Score":
    """Return a file as a score with a track per program. Sustain pedals lengthen the notes."""
    from symusic import Note, Score, Tempo, TimeSignature, Track

    score = Score(midi.ticks_per_quarter)
    tempos = [(tick, a) for tick, kind, _, a, *_ in midi.timing if kind == TEMPO]
    ticks, mspq = np.array(tempos, np.int32).reshape(-1, 2).T.copy()
    score.tempos = Tempo.from_numpy(time=ticks, mspq=mspq)
    ticks, numerators, denominators = np.array(meters, np.int32).reshape(-1, 3).T.copy()
    score.time_signatures = TimeSignature.from_numpy(ticks, numerators.astype(np.uint8), denominators.astype(np.uint8))
    durations = ends_by_pedal(notes) - notes.start
    for program in np.unique(notes.program).tolist():
        track = Track(program=0 if program == DRUMS else program, is_drum=program == DRUMS)
        own = notes.program == program
        track.notes = Note.from_numpy(
            notes.start[own].astype(np.int32),
            durations[own].astype(np.int32),
            notes.pitch[own].astype(np.int8),
            notes.velocity[own].astype(np.int8),
        )
        score.tracks.append(track)
    return score


def _meters(midi: ParsedMidi) -> tuple[list[Meter], int]:
    """Return time signatures from the vocabulary that produce the bars of `midi`, and how many original ones are lost.

    A meter that is not in the vocabulary is replaced by one of the same length, such as 18/8 by 9/4, and a bar that is
    cut short by a change of the meter gets a time signature of its own. Where no such meter exists, MidiTok's rules
    apply: the meter before continues, or the change is delayed to the next bar line.
    """
    sixteenth = midi.ticks_per_quarter / 4
    meters: list[Meter] = []
    n_lost = 0
    start = length = 0.0  # where the last meter starts, and the length of its bars, in ticks
    for tick, numerator, denominator in BarGrid.from_events(midi.timing, midi.ticks_per_quarter).changes:
        meter = _meter(Fraction(numerator, denominator), denominator)
        if meter is None:
            n_lost += 1
            continue
        if meters:
            line = start + (max(tick, start) - start) // length * length  # the last bar line
            rest = max(tick, start) - line
            n_sixteenths = round(rest / sixteenth)
            # MidiTok rounds times to positions. By default, a sixteenth note has at least six of them.
            is_exact = abs(rest - n_sixteenths * sixteenth) <= sixteenth / 12
            part = _meter(Fraction(n_sixteenths, 16), meters[-1][2]) if is_exact and n_sixteenths else None
            if is_exact and n_sixteenths * sixteenth in (0, length):
                start = line + n_sixteenths * sixteenth
            elif part is not None:
                if line == start:
                    meters[-1] = (meters[-1][0], *part)
                else:
                    meters.append((round(line), *part))
                start = tick
            else:
                n_lost += 1
                start = line + length
        meters.append((tick, *meter))
        length = 16 * sixteenth * meter[0] / meter[1]
    return meters, n_lost


def _meter(length: Fraction, denominator: int) -> tuple[int, int] | None:
    """Return a time signature for bars of `length` whole notes, with a denominator close to the given one."""
    for beats in sorted(TIME_SIGNATURES, key=lambda beats: (abs(log2(beats / denominator)), beats)):
        if (length * beats).denominator == 1 and int(length * beats) in TIME_SIGNATURES[beats]:
            return int(length * beats), beats
    return None


def _program(track: "Track") -> int:
    return DRUM_PROGRAM if track.is_drum else track.program


def _to_mido(score: "Score") -> mido.MidiFile:
    """Return a score as a format 1 file: a track of tempos and time signatures, then one track per program.

    If there are more than fifteen melodic programs, they share channels, and a program change precedes each note.
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
