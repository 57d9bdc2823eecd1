"""README.md and docs/: generated tables are up to date, links resolve, and marked examples run as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_music import export
from tests.training.conftest import PROJECT, environment, train

README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
by_page = pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
EXAMPLE = re.compile(r"<!-- run by tests/test_readme.py -->\n+```(\w+)\n(.*?)```", flags=re.DOTALL)
EXAMPLES = [example for page in PAGES for example in EXAMPLE.findall(page.read_text(encoding="utf-8"))]


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    import tables

    yield tables
    for name in ("tables", "plan", "ranks", "report"):
        sys.modules.pop(name, None)


@by_page
def test_tables_are_up_to_date(page, tables):
    text = page.read_text(encoding="utf-8")
    assert tables.with_tables(text, tables.root_of(page)) == text, "run `python benchmarks/tables.py`"
    assert text.count("<!-- table") == text.count(tables.END) == len(tables.BLOCK.findall(text))


def test_every_table_is_on_one_page(tables):
    used = [name for page in tables.pages() for name in tables.BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(tables.BLOCKS)


def test_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


@by_page
def test_relative_links_resolve(page):
    """To an existing file and, with a #fragment, to one of its headings."""
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def users_folder(bach_midi, bach_data, tmp_path_factory) -> Path:
    """A folder with the repository's files, a dataset, two small runs, a file of weights and a piece."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("train.py", "ds_configs", "rwkv_music"):
        (folder / name).symlink_to(PROJECT / name)
    for name in ("data", "runs"):
        (folder / name).mkdir()
    (folder / "data" / "mine").symlink_to(bach_data)
    shutil.copyfile(sorted(bach_midi.glob("*.mid"))[0], folder / "opening.mid")
    small = "--n_layer 1 --n_embd 64 --ctx_len 64 --batch_size 4 --steps 1 --val_every 0 --channel_mix x070".split()
    train(folder / "runs" / "mine", "--data", bach_data, *small)
    train(folder / "runs" / "parts", "--data", bach_data, *small, "--task", "infill")
    export(folder / "runs" / "mine", folder / "rwkv7.pth")
    return folder


def test_files_named_in_architecture_exist():
    text = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w/.]+)`", text) if "/" in name and re.search(r"\.(py|cu|sh)$|/$", name)}
    missing = [
        name
        for name in named
        if not name.startswith("deepspeed/") and not any((PROJECT / top / name).exists() for top in ("", "rwkv_music"))
    ]
    assert len(named) > 20 and not missing


def test_examples_of_both_languages_are_marked():
    assert sorted(language for language, _ in EXAMPLES) == ["bash", "bash", "python", "python", "python", "python"]


@pytest.mark.parametrize("language, text", EXAMPLES, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(EXAMPLES)])
def test_example_runs_as_printed(language, text, users_folder):
    before = set(users_folder.iterdir())
    command = [sys.executable, "-c", text] if language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    paths = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(users_folder)}
    done = subprocess.run(
        command, cwd=users_folder, env={**environment(), **paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    written = {path.name for path in set(users_folder.iterdir()) - before}
    if "count=3" in text:
        assert len(written) == 6
    elif "fill(" in text:
        assert written == {"middle.mid", "accompanied.mid"}
    elif "complete(" in text:
        assert written == {"completed.mid"}
    elif "--tune" in text:
        assert {"style.mid", "style.png", "style.pth"} <= written
    elif language == "bash":
        assert {"tuned.pth", "tuned.safetensors", "tuned_hf"} <= written
        assert (users_folder / "runs" / "tuned" / "checkpoints" / "step_00000003").is_dir()
