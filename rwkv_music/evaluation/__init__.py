"""Evaluation of a model on a dataset: losses, n-gram baselines, completions and holes."""
