"""A codec turns one MIDI file into token ids and back: the interface, and what every member shares.

    piece = codec.encode_piece(Path("in.mid"))         its ids, and where bars begin among them
    prompt = codec.first_bars(piece, 4)                four bars and no end
    grammar = codec.grammar(prompt, rows=3, bars=8)    what three rows may draw until each has eight bars more
    midi = codec.decode(ids, prompt.bar_lines)         any ids as a well-formed file, bars going on as the prompt's do

`encode` is `encode_piece` without the bars. The members and their names are in codecs.py.

Notable choices:
- A codec is its JSON: name, options and the whole vocabulary.
- `fingerprint` covers what decides the ids and nothing else: two codecs have the same one if and only if they number
  the same music the same way. A model and a dataset that differ in it are never mixed.
- What cannot be read raises `RejectedMidi` with a short reason that stays the same from run to run, so that reasons can
  be counted. The shape of the file is checked here, before any library sees it.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rwkv_music.errors import explained
from rwkv_music.files import write_text

if TYPE_CHECKING:
    import mido

    from rwkv_music.tokenizers.grammar import Grammar

LONGEST_PIECE_QUARTERS = 20_000  # 2 h 45 min at 120 a minute; a stray event at a far tick would be that many bars
FORMAT = "rwkv-music tokenizer"  # of a tokenizer.json
FORMAT_VERSION = 1


@dataclass(frozen=True)
class BarLines:
    """Where the bars of a piece lie in time. Past the last one, bars of its length follow.

    Attributes:
        start_ms: float64 [bars + 1], each bar's beginning and the last one's end, rising, in milliseconds on the clock
            of the tokens, which is 0 at the first of them; the first bar may begin before that.
        signatures: int64 [bars, 2], each bar's time signature.
    """

    start_ms: np.ndarray
    signatures: np.ndarray


@dataclass(frozen=True)
class Piece:
    """One piece of music as tokens.

    Attributes:
        ids: uint16 [n], BOS first; EOS last, unless it was cut.
        bar_starts: int64 [bars], where each bar's first token is in `ids`, never falling. A bar in which no token
            begins starts where the next one does.
        bar_lines: what `decode` must know to put bar lines where they were; None where the ids say it themselves.
    """

    ids: np.ndarray
    bar_starts: np.ndarray
    bar_lines: BarLines | None = None


class Codec(ABC):
    """Music as token ids, one piece a document, `bos_id` first and `eos_id` last.

    Attributes:
        name: what `--tokenizer` calls it.
        options: what it was made with, JSON values.
        vocabulary: the token of each id, as text.
        libraries: the versions of the packages that the vocabulary was made with; a record, no part of the fingerprint.
    """

    name: ClassVar[str]
    pad_id: ClassVar[int]
    bos_id: ClassVar[int]
    eos_id: ClassVar[int]

    def __init__(self, options: dict[str, Any], vocabulary: list[str], libraries: dict[str, str]):
        self.options = options
        self.vocabulary = vocabulary
        self.libraries = libraries

    @abstractmethod
    def encode_piece(self, source: Path | bytes) -> Piece:
        """One piece, whole, from a file or its bytes.

        Bars are counted to the one in which the last note begins.

        Raises:
            RejectedMidi: it is not music that can be read.
            UserError: the file cannot be opened.
        """

    def encode(self, source: Path | bytes) -> np.ndarray:
        """The ids of `encode_piece`, uint16 [n], BOS first and EOS last."""
        return self.encode_piece(source).ids

    @abstractmethod
    def decode(self, ids: np.ndarray, bar_lines: BarLines | None = None) -> "mido.MidiFile":
        """A well-formed, playable file from any ids [n]; BOS, EOS, PAD and whatever makes no sense are ignored.

        Every note ends, after it began. `bar_lines` are those of the piece or prompt that the ids begin with.
        """

    @abstractmethod
    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        """Where each bar of the file that `decode(ids)` writes has its first token in `ids` [n]: int64 [bars]."""

    @abstractmethod
    def grammar(self, prompt: Piece, rows: int = 1, bars: int | None = None, may_end: bool = False) -> "Grammar":
        """What may follow `prompt`, for rows that each go on from it by themselves (see grammar.py).

        Args:
            prompt: a piece cut at a bar line, from `first_bars`. The rows begin with the bar after it.
            rows: how many.
            bars: a row ends when it has so many; when None, only by EOS.
            may_end: whether EOS is allowed before that. It always is when `bars` is None.
        """

    def first_bars(self, piece: Piece, n: int) -> Piece:
        """The first `n` bars of `piece`, without an EOS, 0 <= n <= bars; nothing but what precedes them for n = 0."""
        if not 0 <= n <= len(piece.bar_starts):
            raise IndexError(f"{n} of {len(piece.bar_starts)} bars")
        ends = np.append(piece.bar_starts, len(piece.ids) - (piece.ids[-1:] == self.eos_id).sum())
        lines = piece.bar_lines
        if lines is not None:
            n_lines = max(n, 1)  # what follows must know a bar's length
            lines = BarLines(lines.start_ms[: n_lines + 1], lines.signatures[:n_lines])
        return Piece(piece.ids[: ends[n]], piece.bar_starts[:n], lines)

    @abstractmethod
    def count_notes(self, ids: np.ndarray) -> int:
        """How many notes `ids` [n] start."""

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def vocabulary_sha256(self) -> str:
        return _sha256(self.vocabulary)

    @property
    def fingerprint(self) -> str:
        """Hex sha256 of name, options and vocabulary: the same if and only if two codecs give the same ids."""
        return _sha256([self.name, sorted(self.options.items()), self.vocabulary])

    def save(self, path: str | os.PathLike) -> None:
        """Write the codec as one self-contained JSON file (tokenizer.json)."""
        facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "options": self.options,
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "bos_id": self.bos_id,
            "eos_id": self.eos_id,
            "fingerprint": self.fingerprint,
            "libraries": self.libraries,
            "vocabulary_sha256": self.vocabulary_sha256,
            "vocabulary": self.vocabulary,
        }
        with explained(f"writing {path}"):
            write_text(path, json.dumps(facts, indent=1) + "\n")


def _sha256(value: list) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()
