"""Parsing of the option `--tag`, such as `--tag composer=bach`, and the tags of a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

from rwkv_music.errors import UserError
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.tags import UNKNOWN, tag_text

MOST_LISTED = 20


def parse_tags(texts: Sequence[str]) -> dict[str, str]:
    """Return the values of `--tag`, such as "composer=bach", by column.

    Raises UserError for a value that cannot be read, and for a column that is given twice.
    """
    tags: dict[str, str] = {}
    for text in texts:
        column, equals, value = (tag_text(part) for part in text.partition("="))
        if not (column and equals and value):
            raise UserError(f'--tag "{text}" cannot be read: give a column and a value, such as composer=bach.')
        if column in tags:
            raise UserError(f"--tag gives the {column} twice: give it once.")
        tags[column] = value
    return tags


def tagged(codec: Codec, piece: Piece, tags: Mapping[str, str]) -> Piece:
    """Return the prompt `piece` with the given tags. `tags` maps columns to values.

    Raises UserError for a column or a value that `codec` does not have.
    """
    if not tags:
        return piece
    if not codec.tags:
        raise UserError(
            f"The model's tokenizer {codec.name} has no tags: omit --tag, or use a model trained on data prepared with "
            "--tags."
        )
    tags = {tag_text(column): tag_text(value) for column, value in tags.items()}
    for column, value in tags.items():
        if column not in codec.tags:
            raise UserError(f'The model has no tag "{column}": give one of {", ".join(codec.tags)}.')
        values = [*codec.tags[column], UNKNOWN]
        if value not in values:
            near = get_close_matches(value, values, MOST_LISTED, 0.5)
            listed = (
                values if len(values) <= MOST_LISTED else [*near, *(v for v in values if v not in near)][:MOST_LISTED]
            )
            more = len(values) - len(listed)
            others = f" ({more:,} more in tokenizer.json)" if more else ""
            raise UserError(f'The model has no {column} "{value}": give one of {", ".join(listed)}{others}.')
    return replace(piece, ids=codec.with_tags(piece.ids, tags))
