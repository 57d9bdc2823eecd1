"""The README's figures are those of benchmarks/results, and its Python example runs as it is printed."""

import re
import sys

from tests.training.conftest import PROJECT

README = PROJECT / "README.md"


def test_figures_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "benchmarks"))
    import readme

    text = README.read_text(encoding="utf-8")
    assert readme.with_figures(text) == text, "run `python benchmarks/readme.py`"
    for path in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (PROJECT / path).exists(), path
    sys.modules.pop("readme")


def test_the_python_example_runs():
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["loss"].isfinite() and names["logits"].shape == (4, 65, 1318)
    assert names["model"].emb.weight.grad is not None
