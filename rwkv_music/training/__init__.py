"""Training: the loop, its engine and optimizer, its checkpoints and its curves."""

import logging

# DeepSpeed warns, at every import on a machine without a GPU, that it trains on the CPU; the summary says so already.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
