"""Training: the loop, its engine and optimizer, its checkpoints and its curves."""

import logging
import os
import warnings

# On a CPU, a thread that has done its part spins for the others for milliseconds, by default. Where another program has
# taken a core that costs a step a hundredfold; 30,000 turns cost nothing where none has. Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

# DeepSpeed warns, at every import on a machine without a GPU, that it trains on the CPU; the summary says so already.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
# It calls collectives by names and in ways that newer versions of torch warn of; nobody here can mend that.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
warnings.filterwarnings("ignore", r"barrier\(\): using the device", UserWarning)
