"""The codecs by name: a new one with its default options, or the one that a tokenizer.json holds.

    remi      bars, beats and note values (remi.py): the ids themselves name bars, tempos and time signatures
    midi-llm, midi-llm-piano
              milliseconds and key presses (midi_llm.py): only the file says where bars are, so they are kept beside
              the ids, by token (`Piece.bar_starts`, in a dataset `*.bars`) to cut and by time (`BarLines`) to go on

What they all do is in codec.py.

Notable choices:
- A member is imported when it is asked for, and loading one needs no tokenizer library, so a GPU node can size a model,
  pad a batch and find bars with the core alone; MidiTok is imported when a file is encoded or decoded.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any

from rwkv_music.errors import UserError, explained
from rwkv_music.tokenizers.codec import FORMAT, FORMAT_VERSION, Codec

TOKENIZERS = ("remi", "midi-llm", "midi-llm-piano")


def make_codec(name: str, **options: Any) -> Codec:
    """The codec called `name` ("remi", "midi-llm"), with its default options where none are given."""
    codec_class = _codec_class(name)
    unknown = set(options) - set(inspect.signature(codec_class).parameters)
    if unknown:
        raise UserError(
            f"The tokenizer {name} has no option {min(unknown)}: leave it out, or choose another tokenizer."
        )
    return codec_class(**options)


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
        from rwkv_music.tokenizers.remi import Remi

        return Remi
    if name in ("midi-llm", "midi-llm-piano"):
        from rwkv_music.tokenizers.midi_llm import MidiLlm, MidiLlmPiano

        return MidiLlm if name == "midi-llm" else MidiLlmPiano
    raise UserError(f"There is no tokenizer {name!r}: choose one of {', '.join(TOKENIZERS)}.")
