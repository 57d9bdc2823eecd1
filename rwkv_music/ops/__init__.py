"""Operators: the WKV7s recurrence, the fused training operators, the output head with its loss, and AdamW."""
