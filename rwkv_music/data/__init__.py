"""Prepared datasets: token files, rows, tasks, document streams, augmentation and n-gram baselines."""
