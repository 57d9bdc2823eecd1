"""MIDI files: events, time, notes, editing, statistics, measures, piano rolls and audio."""
