"""Tags: tokens at the head of a piece that describe it, such as `Tag_composer=bach`.

A tag has a column, such as `composer`, and one of the values of this column. A tokenizer with tags starts every piece
with BOS and one tag of each column. Each column has a value `none`, which stands for an unknown value and for every
value that the tokenizer does not have. Columns and values are in lower case.
"""

from collections.abc import Mapping, Sequence

UNKNOWN = "none"
MAX_COLUMNS = 16
MAX_VALUES = 1000  # values per column, without UNKNOWN


def tag_text(text: str) -> str:
    """Return the name of a column or a value in the form of the vocabulary: lower case, with single spaces."""
    return " ".join(text.split()).lower()


def tag_tokens(tags: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tokens of all values of `tags`, column by column. The token for UNKNOWN is the first of each column.

    Raises ValueError if a column or a value does not have the form that `tag_text` returns, if a value is given twice,
    or if there are too many columns or values.
    """
    if len(tags) > MAX_COLUMNS:
        raise ValueError(f"more than {MAX_COLUMNS} columns of tags")
    for column, values in tags.items():
        names = [column, *values]
        if any(name != tag_text(name) or not name for name in names) or "=" in column:
            raise ValueError(f"a tag of the column {column!r} has an invalid name")
        if len({UNKNOWN, *values}) != len(values) + 1 or len(values) > MAX_VALUES:
            raise ValueError(f"the column {column!r} has a value twice, or more than {MAX_VALUES:,} values")
    return [f"Tag_{column}={value}" for column, values in tags.items() for value in (UNKNOWN, *values)]
