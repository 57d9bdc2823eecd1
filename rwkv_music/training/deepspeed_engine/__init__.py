"""The DeepSpeed engine: the only package that imports deepspeed."""

import logging
import warnings

# DeepSpeed warns at every import on a machine without a GPU that it uses the CPU; the summary names the device.
# It also calls every optimizer untested that is not its own or torch's; training/deepspeed_engine/muon.py is tested.
_NOISE = ("Setting accelerator to CPU", "untested optimizer")
logging.getLogger("DeepSpeed").addFilter(lambda record: not any(text in record.getMessage() for text in _NOISE))
# It calls collectives by names and in ways that newer versions of torch warn about.
warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
warnings.filterwarnings("ignore", r"barrier\(\): using the device", UserWarning)
