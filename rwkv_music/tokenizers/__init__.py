"""Codecs: MIDI files to token ids and back, and the grammars that constrain sampling."""
