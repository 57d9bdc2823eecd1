"""Faster replacements for parts of DeepSpeed, each optional and tied to the tested version."""
