"""The project's own checks: lint gives the same result whatever folders the documented commands have written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def ruff_reports(folder: Path) -> list[str]:
    """Return what `ruff check` and `ruff format --check` print in `folder`."""
    commands = (["check", "--no-cache", "--output-format=concise"], ["format", "--no-cache", "--check"])
    lines = [[sys.executable, "-m", "ruff", *command, "."] for command in commands]
    runs = [subprocess.run(line, cwd=folder, capture_output=True, text=True) for line in lines]
    assert all(run.returncode in (0, 1) for run in runs), runs
    return [run.stdout for run in runs]


def test_folders_written_by_commands_do_not_change_lint(tmp_path):
    for source in ("rwkv_music", "benchmarks", "launch", "tests"):
        shutil.copytree(PROJECT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for source in ("pyproject.toml", "train.py"):
        shutil.copy(PROJECT / source, tmp_path)
    before = ruff_reports(tmp_path)
    written = re.findall(r"^/(\w+)/$", (PROJECT / ".gitignore").read_text(), re.MULTILINE)
    assert {"build", "data", "demo", "runs"} <= set(written)
    for name in written:
        (tmp_path / name).mkdir()
        (tmp_path / name / "script.py").write_text("import  sys\n")
    assert ruff_reports(tmp_path) == before
