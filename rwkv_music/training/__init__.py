"""Training: set-up, the loop, checkpoints, metrics and health. Only `deepspeed_engine` imports DeepSpeed."""
