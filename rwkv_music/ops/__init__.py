"""Differentiable operators: the WKV7s recurrence, the fused training operators, and the head with its loss."""
