"""Write the README's figures from results/, so that none is typed by hand.

python benchmarks/readme.py
"""

import json
from pathlib import Path

import report

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures: benchmarks/readme.py -->", "<!-- end of figures -->"


def figures() -> str:
    """The README's section on the demo, in Markdown."""
    demo = json.loads((report.RESULTS / "demo.json").read_text(encoding="utf-8"))
    machine, val = demo["machine"], demo["evaluation"]["val"]
    completions = sorted(path.stem for path in (report.RESULTS / "demo").glob("*.mid"))
    images = "benchmarks/results/demo"
    return f"""
From a clean clone `make demo` took {demo["first_seconds"]} s on {machine["cores"]} cores without a GPU, installation
included, and {demo["again_seconds"]} s a second time. What it prints of the chorales that it held out
({val["targets"]:,.0f} tokens):

| | nats a token | bits a note |
|---|---|---|
| the trained model (3 x 128) | {val["nats_per_token"]:.3f} | {val["bits_per_note"]:.2f} |
| a bigram model of the same tokens | {val["bigram_nats_per_token"]:.3f} | |
| a unigram model | {val["unigram_nats_per_token"]:.3f} | |

![Losses over the steps, far below the bigram model's]({images}/curve.png)

One of its completions, {completions[0]}: four bars of Bach, then the model
([listen]({images}/{completions[0]}.mid), and the others beside it):

![Piano roll of four given and eight completed bars]({images}/{completions[0]}.png)
"""


def with_figures(text: str) -> str:
    """`text` with what stands between the marks made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + figures() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
