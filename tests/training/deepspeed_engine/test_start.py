"""What a run imports at its start."""

import subprocess

from tests.training.conftest import TINY, command, environment


def test_a_run_does_not_import_torch_compile(bach_data, tmp_path):
    """The import takes a rank several seconds."""
    line = command(tmp_path / "run", "--data", bach_data, *TINY, "--steps", 1)
    listed = environment() | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(line, env=listed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines() if row.startswith("import time:")}
    assert "deepspeed.runtime.engine" in imported and not {"torch._dynamo", "torch._inductor", "sympy"} & imported
