"""Preparation of datasets from MIDI files: sources, worker processes, the prepare log and the report."""
