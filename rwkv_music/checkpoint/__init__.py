"""Checkpoints and weight files: the on-disk format, reading, export, adapters and initial states."""
