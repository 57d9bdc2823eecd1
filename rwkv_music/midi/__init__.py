"""MIDI files: events, time, statistics, measures, cutting and joining, piano rolls and sound."""
