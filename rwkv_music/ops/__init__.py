"""Operators: the WKV7s recurrence, context parallelism, fused training operators, CPU decoding, and the output head."""
