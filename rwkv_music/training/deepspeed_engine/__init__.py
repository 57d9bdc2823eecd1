"""The DeepSpeed engine: the only package that imports deepspeed."""
