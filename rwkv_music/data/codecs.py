"""Codecs turn one MIDI file into token ids and back: the interface, what every member shares, and how one is named.

Notable choices:
- A codec is its JSON: name, options and the whole vocabulary. Loading one needs no tokenizer library, so a GPU node can
  size a model, pad a batch and find bars with the core alone; MidiTok is imported when a file is encoded or decoded.
- `fingerprint` covers what decides the ids and nothing else: two codecs have the same one if and only if they number
  the same music the same way. A model and a dataset that differ in it are never mixed.
- What cannot be read raises `RejectedMidi` with a short reason that stays the same from run to run, so that reasons can
  be counted. The shape of the file is checked here, before any library sees it.
"""

import hashlib
import json
import os
import struct
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from rwkv_music.errors import UserError, explained
from rwkv_music.files import write_text

if TYPE_CHECKING:
    import mido

TOKENIZERS = ("remi",)
FORMAT = "rwkv-music tokenizer"
FORMAT_VERSION = 1


class RejectedMidi(Exception):
    """A file that cannot become tokens; `reason` is a short phrase, stable from run to run ("no notes")."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


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

    def __init__(self, options: dict[str, int], vocabulary: list[str], libraries: dict[str, str]):
        self.options = options
        self.vocabulary = vocabulary
        self.libraries = libraries

    @abstractmethod
    def encode(self, source: Path | bytes) -> np.ndarray:
        """One piece, from a file or its bytes, as uint16 [n], BOS first and EOS last.

        Raises:
            RejectedMidi: it is not music that can be read.
            UserError: the file cannot be opened.
        """

    @abstractmethod
    def decode(self, ids: np.ndarray) -> "mido.MidiFile":
        """A well-formed, playable file from any ids [n]; BOS, EOS, PAD and whatever makes no sense are ignored."""

    @abstractmethod
    def bar_starts(self, ids: np.ndarray) -> np.ndarray:
        """Where each bar's first token is in `ids` [n]: int64 [bars]."""

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


def make_codec(name: str, **options: int) -> Codec:
    """The codec called `name` ("remi"), with its default options where none are given."""
    return _codec_class(name)(**options)


def load_codec(path: str | os.PathLike) -> Codec:
    """The codec that `Codec.save` wrote to `path`; a `UserError` if the file is missing, foreign or altered."""
    with explained(f"reading the tokenizer {path}"):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        facts = json.loads(text)
        if facts["format"] != FORMAT or facts["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{facts['format']!r}, version {facts['format_version']!r}")
        codec_class = _codec_class(facts["name"])
        codec = codec_class(**facts["options"], vocabulary=facts["vocabulary"], libraries=facts["libraries"])
        altered = codec.fingerprint != facts["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a tokenizer.json that this version of RWKV-Music can read: give the one beside the data."
        ) from error
    if altered:
        raise UserError(f"{path} was altered (its fingerprint does not match its vocabulary): take the original again.")
    return codec


def _codec_class(name: str) -> type[Codec]:
    if name == "remi":
        from rwkv_music.data.remi import Remi

        return Remi
    raise UserError(f"There is no tokenizer {name!r}: choose one of {', '.join(TOKENIZERS)}.")


def _sha256(value: list) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


def read_midi(source: Path | bytes) -> bytes:
    """The bytes of a Standard MIDI File whose chunks are whole.

    Raises:
        RejectedMidi: it is empty, not a MIDI file, truncated, or of a kind without beats or a common time line.
        UserError: the file cannot be opened or read.

    Source: the Standard MIDI Files 1.0 specification (RP-001).
    """
    if isinstance(source, bytes):
        data = source
    else:
        with explained(f"reading {source}"):
            data = Path(source).read_bytes()
    if not data:
        raise RejectedMidi("empty file")
    if not data.startswith(b"MThd"):
        raise RejectedMidi("not a MIDI file")
    if len(data) < 14:
        raise RejectedMidi("truncated")
    header_size, midi_format, n_tracks, division = struct.unpack(">IHHH", data[4:14])
    if header_size < 6 or midi_format > 2:
        raise RejectedMidi("damaged header")
    if midi_format == 2:
        raise RejectedMidi("format 2 (independent patterns)")
    if division == 0:
        raise RejectedMidi("zero ticks per quarter note")
    if division & 0x8000:
        raise RejectedMidi("SMPTE time (no beats)")
    position, found = 8 + header_size, 0
    # Bytes after the last declared track are harmless, and chunks of other kinds are allowed between tracks.
    while found < n_tracks:
        if position + 8 > len(data):
            raise RejectedMidi("truncated")
        kind, size = struct.unpack(">4sI", data[position : position + 8])
        position += 8 + size
        if position > len(data):
            raise RejectedMidi("truncated")
        found += kind == b"MTrk"
    return data
