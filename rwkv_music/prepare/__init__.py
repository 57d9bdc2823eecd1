"""Preparation of datasets from MIDI files and scores: sources, filters, worker processes, log and report."""
