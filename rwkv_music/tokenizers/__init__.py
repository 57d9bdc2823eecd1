"""Codecs, which convert MIDI files to token ids and back, and grammars, which constrain sampling."""
