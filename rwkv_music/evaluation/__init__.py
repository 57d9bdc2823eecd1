"""Evaluation of a model on a dataset: losses, n-gram baselines, and generated music compared with real music."""
