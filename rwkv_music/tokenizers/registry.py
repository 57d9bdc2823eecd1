"""Create a codec by its name, or load one from a tokenizer.json.

    multitrack  bars, parts and note values (multitrack.py); the voices of a piece stay separate
    midi-llm, midi-llm-piano
                milliseconds, note-ons and note-offs (midi_llm.py). The tokens contain no bars. Bars are therefore
                stored beside the ids, as token indices (`Piece.bar_starts`; `*.bars` in a dataset) and as times
                (`BarLines`)

To add a codec, implement `Codec` (codec.py) and `Grammar` (grammar.py), and add the class to `CODECS`.
"""

import inspect
import os
from typing import Any

from rwkv_music.errors import UserError
from rwkv_music.files import read_json
from rwkv_music.tokenizers.codec import FORMAT, FORMAT_VERSION, Codec
from rwkv_music.tokenizers.midi_llm import MidiLlm, MidiLlmPiano
from rwkv_music.tokenizers.multitrack import Multitrack

CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Multitrack, MidiLlm, MidiLlmPiano)}
TOKENIZERS = tuple(CODECS)
DEFAULT_TOKENIZER = Multitrack.name
TYPES = {
    "format": str,
    "format_version": int,
    "name": str,
    "options": dict,
    "vocabulary": list,
    "fingerprint": str,
}


def make_codec(name: str, **options: Any) -> Codec:
    """Return a new codec. `name` is one of TOKENIZERS, and `options` are arguments of the constructor.

    Raises UserError if the codec or an option does not exist.
    """
    if name not in CODECS:
        raise UserError(f"There is no tokenizer {name!r}; choose one of {', '.join(TOKENIZERS)}.")
    codec_class = CODECS[name]
    unknown = set(options) - set(inspect.signature(codec_class).parameters)
    if unknown:
        raise UserError(f"The tokenizer {name} has no option {min(unknown)}; omit it or choose another tokenizer.")
    return codec_class(**options)


def load_codec(path: str | os.PathLike) -> Codec:
    """Load the codec that `Codec.save` wrote to `path`.

    Raises UserError if the file is missing, is not a tokenizer.json of this version, names a tokenizer that this
    version does not have, or was modified.
    """
    contents = read_json(path, "use the tokenizer.json next to the data", TYPES)
    name = contents["name"]
    try:
        if contents["format"] != FORMAT or contents["format_version"] != FORMAT_VERSION:
            raise ValueError(f"{contents['format']!r}, version {contents['format_version']!r}")
        if name not in CODECS:
            raise UserError(
                f"{path} names the tokenizer {name!r}, which this version of RWKV-Music does not have; prepare the "
                f"data again with {' or '.join(TOKENIZERS)}, or use the commit that wrote the file."
            )
        codec = CODECS[name](**contents["options"], vocabulary=contents["vocabulary"])
        modified = codec.fingerprint != contents["fingerprint"]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a tokenizer.json that this version of RWKV-Music can read; use the one next to the data."
        ) from error
    if modified:
        raise UserError(f"{path} was modified: its fingerprint does not match its contents; restore the original file.")
    return codec
