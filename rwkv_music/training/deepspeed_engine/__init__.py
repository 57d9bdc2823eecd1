"""The DeepSpeed engine: the only package that uses deepspeed (commands/doctor.py only imports it as a check)."""

import logging
import warnings

# Suppress two warnings of DeepSpeed. On a machine without a GPU, every import warns that the CPU is used, but the run's
# summary already names the device. DeepSpeed also warns of optimizers other than its own and torch's, such as `muon`.
_NOISE = ("Setting accelerator to CPU", "untested optimizer")
logging.getLogger("DeepSpeed").addFilter(lambda record: not any(text in record.getMessage() for text in _NOISE))
# DeepSpeed calls collectives in ways that newer versions of torch warn about.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
warnings.filterwarnings("ignore", r"barrier\(\): using the device", UserWarning)
