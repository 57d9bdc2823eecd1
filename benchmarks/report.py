"""Write benchmark results: the figures with the machine and the versions that produced them."""

import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import rwkv_music

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Return the hardware and the software of this process."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "rwkv_music": rwkv_music.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        facts |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # "-dirty" after uncommitted changes
    commit = subprocess.run(describe, cwd=RESULTS.parent, capture_output=True, text=True)
    return facts | ({"commit": commit.stdout.strip()} if commit.returncode == 0 else {})


def card() -> str:
    """Return a short name of the GPU, such as "h200" or "rtx_4090"."""
    found = re.search(r"RTX \w+|[A-Z]+\d+\w*", torch.cuda.get_device_name())
    return found[0].lower().replace(" ", "_") if found else "gpu"


def write(name: str, figures: dict[str, Any], folder: str | os.PathLike = RESULTS) -> Path:
    """Write results/NAME.json and return its path."""
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n", encoding="utf-8")
    return path


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
