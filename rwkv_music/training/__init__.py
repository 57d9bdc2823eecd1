"""Training: the loop, its engine and optimizer, its checkpoints and its curves."""
