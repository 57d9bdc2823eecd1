"""Tokenizers: music as token ids and back, with the grammars that keep generated tokens valid."""
