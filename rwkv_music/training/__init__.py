"""Training: set-up, the loop, checkpoints, metrics and health. DeepSpeed is used through `deepspeed_engine` alone."""
