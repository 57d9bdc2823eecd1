"""The DeepSpeed engine: the only package that imports deepspeed."""

import logging
import warnings

# DeepSpeed warns at every import on a machine without a GPU that it uses the CPU; the summary names the device.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
# It calls collectives by names and in ways that newer versions of torch warn about.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
warnings.filterwarnings("ignore", r"barrier\(\): using the device", UserWarning)
