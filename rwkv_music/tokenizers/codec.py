"""The interface of codecs, which convert MIDI files to token ids and back.

    piece = codec.encode_piece(Path("in.mid"))         ids, and the index of each bar's first token
    prompt = codec.first_bars(piece, 4)                the first four bars, without EOS
    grammar = codec.grammar(prompt, rows=3, bars=8)    constrains sampling: three continuations of eight bars
    midi = codec.decode(ids, prompt.bar_lines)         any ids as a valid MIDI file

registry.py creates codecs by name. A JSON file with name, options and vocabulary fully describes a codec. Codecs with
the same `fingerprint` encode music to the same ids. A model can only be used with data that has the same fingerprint as
its own codec.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import mido
import numpy as np

from rwkv_music.errors import explained
from rwkv_music.files import write_text
from rwkv_music.midi.events import ParsedMidi, RejectedMidi
from rwkv_music.midi.parts import Part
from rwkv_music.tokenizers.grammar import Grammar
from rwkv_music.tokenizers.vocabulary import Vocabulary

MAX_PIECE_QUARTERS = 20_000  # 2 h 46 min at a tempo of 120; a limit, because a very late event would create many bars
EMPTY_NOTES = "notes without length"  # a reason in `Piece.lost`
MOST_TOKENS = 2**16  # datasets store ids as uint16
FORMAT = "rwkv-music tokenizer"  # the format name in tokenizer.json
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BarLines:
    """The times of the bar lines of a piece. After the last bar, bars of the same length follow.

    `start_ms` has the start of each bar and the end of the last one, in milliseconds since the first token. The first
    bar may start before the first token, at a negative time.
    """

    start_ms: np.ndarray  # float64 [bars + 1], increasing
    signatures: np.ndarray  # int64 [bars, 2]: (numerator, denominator) of each bar


@dataclass(frozen=True)
class Piece:
    """A piece of music as tokens.

    `bar_starts` has the index in `ids` of each bar's first token. A bar without tokens has the index of the next bar.
    `lost` counts notes of the file that the tokens do not contain, and notes and bars that the tokens contain in a
    changed form. Its keys are short fixed phrases, such as "notes of other instruments".
    """

    ids: np.ndarray  # uint16 [n], starting with BOS and ending with EOS unless the piece was cut
    bar_starts: np.ndarray  # int64 [bars], non-decreasing
    bar_lines: BarLines | None = None  # an argument of `decode`; None for codecs whose tokens contain the bars
    lost: dict[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()  # the parts of the file, for codecs with Part tokens; Part_k stands for parts[k - 1]


class Codec(ABC):
    """A codec. It encodes each piece as one document that starts with `bos_id` and ends with `eos_id`.

    `options` are the options of the constructor as JSON values, and `vocabulary` has the text of each token.
    """

    name: ClassVar[str]  # the value of `--tokenizer`
    pad_id: ClassVar[int]
    bos_id: ClassVar[int]
    eos_id: ClassVar[int]
    velocities_include_volume: ClassVar[bool] = False  # whether volume and expression are multiplied into velocities

    def __init__(self, options: dict[str, Any], vocabulary: list[str]):
        if len(vocabulary) > MOST_TOKENS:
            raise ValueError(
                f"The vocabulary has {len(vocabulary):,} tokens, but a dataset can store only {MOST_TOKENS:,} "
                "different ids: use a smaller vocabulary."
            )
        self.options = options
        self.vocabulary = vocabulary

    @abstractmethod
    def encode_piece(self, source: Path | bytes | ParsedMidi) -> Piece:
        """Encode a whole MIDI file. The last bar of the piece is the bar in which the last note starts.

        Raises RejectedMidi if the file cannot be encoded, and UserError if it cannot be opened.
        """

    def encode(self, source: Path | bytes | ParsedMidi) -> np.ndarray:
        """Return the ids of `encode_piece`, uint16 [n]."""
        return self.encode_piece(source).ids

    @abstractmethod
    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None) -> mido.MidiFile:
        """Return a valid MIDI file for any ids [n].

        `bar_lines` are the bar lines of the piece or prompt with which `ids` begin. BOS, EOS, PAD, and tokens that are
        invalid in their context, are ignored. Every note has a positive length.
        """

    @abstractmethod
    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        """Return the index in `ids` [n] of the first token of each bar of `decode(ids)`: int64 [bars]."""

    @abstractmethod
    def grammar(self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False) -> Grammar:
        """Return a grammar that constrains `rows` independent continuations of `prompt` (see grammar.py).

        `prompt` is a result of `first_bars`. The rows start with the bar after the prompt. A row ends after `bars`
        bars. If `may_end` is set, EOS can end a row earlier. If `bars` is None, only EOS ends a row.
        """

    @property
    @abstractmethod
    def token_properties(self) -> Vocabulary:
        """The musical meaning of the tokens."""

    def bar_lines(self, ids: np.ndarray, bar_starts: np.ndarray) -> BarLines | None:
        """Return the approximate bar lines of a piece.

        `ids` are [n], and `bar_starts` [bars] has the index of each bar's first token. Return None if the tokens
        contain the bars.
        """
        return None

    def first_bars(self, piece: Piece, n: int) -> Piece:
        """Return the first `n` bars of `piece`, without EOS. If n is 0, return BOS and all tokens before the first bar.

        Raises IndexError if `piece` has fewer than `n` bars.
        """
        if not 0 <= n <= len(piece.bar_starts):
            raise IndexError(f"cannot take {n} bars of a piece with {len(piece.bar_starts)}")
        ends = np.append(piece.bar_starts, len(piece.ids) - (piece.ids[-1:] == self.eos_id).sum())
        lines = piece.bar_lines
        if lines is not None:
            n_lines = max(n, 1)  # at least one, because a continuation needs the length of a bar
            lines = BarLines(lines.start_ms[: n_lines + 1], lines.signatures[:n_lines])
        return Piece(piece.ids[: ends[n]], piece.bar_starts[:n], lines, parts=piece.parts)

    @property
    def tags(self) -> dict[str, list[str]]:
        """The possible values of each column of tags (tags.py); empty if the codec has no tags."""
        return self.options.get("tags", {})

    def empty_piece(self) -> Piece:
        """Return a piece without bars: BOS, and the tag for an unknown value of each column."""
        return Piece(np.array([self.bos_id], np.uint16), np.empty(0, np.int64))

    def with_tags(self, ids: np.ndarray, tags: Mapping[str, str]) -> np.ndarray:
        """Return the ids [n] of a piece with some of its tags replaced. `tags` maps their columns to the new values.

        Raises ValueError for a column or a value that the vocabulary does not have.
        """
        if tags:
            raise ValueError(f"the tokenizer {self.name} has no tags")
        return ids

    @abstractmethod
    def excerpt(self, ids: np.ndarray, start: int, split: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an excerpt of a piece as two arrays of ids: the bars in ids[start:split] and those in ids[split:stop].

        The first array has the form of a prompt: it starts with BOS and the tags of the piece, and sets the tempo and
        the programs that the excerpt needs. The second array continues the first. Each of the three indices is the
        start of a bar or the end of `ids`.
        """

    @abstractmethod
    def count_notes(self, ids: np.ndarray) -> int:
        """Return the number of notes that start in `ids` [n]."""

    def decoded_program(self, program: int) -> int | None:
        """Return the program with which `decode` plays notes of `program`, or None if the codec drops these notes.

        Programs are General MIDI's, or DRUMS for percussion.
        """
        return program

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def vocabulary_sha256(self) -> str:
        return _sha256(self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of name, options and vocabulary, in hexadecimal."""
        return _sha256([self.name, sorted(self.options.items()), self.vocabulary])

    def save(self, path: str | os.PathLike) -> None:
        """Write the codec to one JSON file (tokenizer.json)."""
        names = "name options vocab_size pad_id bos_id eos_id fingerprint vocabulary_sha256 vocabulary".split()
        contents = {"format": FORMAT, "format_version": FORMAT_VERSION} | {name: getattr(self, name) for name in names}
        with explained(f"writing {path}"):
            write_text(path, json.dumps(contents, indent=1) + "\n")


def check_length(quarters: float) -> None:
    """Raise RejectedMidi if a piece of this length in quarter notes is too long."""
    if quarters > MAX_PIECE_QUARTERS:
        raise RejectedMidi(f"longer than {MAX_PIECE_QUARTERS:,} quarter notes")


def _sha256(value: list) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
