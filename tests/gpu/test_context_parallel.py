"""Context parallelism in bf16: four ranks that share the GPUs compute what one GPU does, within the same rounding."""

import json
import os

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.cuda import build
from tests.training.conftest import PROJECT, environment
from tests.training.rank_process import run_ranks


def test_ranks_compute_what_one_gpu_does(tmp_path):
    """The ranks exchange over gloo, because NCCL needs a GPU per rank; test_ranks.py trains over NCCL."""
    build.load()  # so that the ranks need not compile
    own = environment()
    del own["CUDA_VISIBLE_DEVICES"]  # which hides all GPUs
    own |= {name: value for name, value in os.environ.items() if name == "CUDA_VISIBLE_DEVICES"}
    line = [str(PROJECT / "tests" / "ops" / "context_ranks.py"), str(tmp_path / "found.json"), "cuda"]
    status = run_ranks(line, 4, own, tmp_path / "log", seconds=300)
    assert status == 0, (tmp_path / "log").read_text()[-3000:]
    errors = json.loads((tmp_path / "found.json").read_text())["errors"]
    assert len(errors) == 2 * (5 + 3 + 1 + 1)
    assert max(errors.values()) <= 1, errors
