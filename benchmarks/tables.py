"""Write the generated tables of README.md and docs/ from results/*.json, so that no figure is typed by hand.

    python benchmarks/tables.py

A block of a page stands between `<!-- table NAME, written by benchmarks/tables.py -->` and `<!-- end of table -->`. The
function of the same name in BLOCKS writes it.
"""

import json
import re
import statistics
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import plan
import report

from rwkv_music.config import PRESETS
from rwkv_music.prepare.packages import PACKAGES

PROGRAMS = {*PACKAGES, "freedink-data", "pianobooster"}  # the corpora of corpus.json that are not music21's
PROJECT = Path(__file__).parent.parent
BEGIN, END = "<!-- table {}, written by benchmarks/tables.py -->", "<!-- end of table -->"
BLOCK = re.compile(BEGIN.format(r"(\w+)") + ".*?" + END, flags=re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that may contain generated blocks: README.md first, then docs/."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def results(name: str) -> dict:
    """Return the content of results/NAME.json."""
    return json.loads((report.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def how_often(phrase: str, times: int) -> str:
    """Return a verb phrase with a number of times, such as "stopped 2 times", or "never stopped" for 0."""
    return f"{phrase} {times} times" if times else f"never {phrase}"


def gpu(machine: dict) -> str:
    """Return the short name of a result's GPU, such as "H100"."""
    return machine["gpu"].removeprefix("NVIDIA ").split()[0]


# Each block is a function of the path from its page to the project's root: "" in README.md, "../" in docs/.


def demo(root: str) -> str:
    """Return the time that `make demo` takes, one of its pieces and its curves."""
    result, images = results("demo"), f"{root}benchmarks/results/demo"
    return f"""
In a clean clone on {result["machine"]["cores"]} CPU cores, `make demo` takes {result["first_seconds"]} s, including the
installation. A second run, which reuses the installation and the
trained model, takes {result["again_seconds"]} s. The pieces are written to `demo/music`, each with a piano roll. In
the piano roll below, the soprano is Bach's, and the model has written the other three voices
([listen]({images}/harmonized.mid)):

![Piano roll: a given soprano, and three voices that the model wrote]({images}/harmonized.png)

This plot compares the model's losses with the loss of a bigram model on the same tokens:

![Training and validation loss by optimizer step, both far below the bigram model's]({images}/curve.png)
"""


def summary(root: str) -> str:
    """Return a table with one row for each kind of result."""
    bach, corpus, tuned = results("demo"), results("corpus"), results("tuning")
    h200, h100, many = results("step_h200"), results("step_h100"), results("scaling")
    kernels, speed, kills = results("wkv7s_gpu"), results("generation_cuda_speed"), results("kills")
    chorales = bach["evaluation"]["val"]
    loss, order, ngram = (chorales[key] for key in ("nats_per_token", "ngram", "ngram_nats_per_token"))
    steps = {
        shape: " and ".join(
            f"{row['tokens_per_second']:,.0f} tokens/s ({row['mfu']:.0%} MFU) on one {gpu(made['machine'])}"
            for made in (h200, h100)
            for row in [made["rows"][shape]]
        )
        for shape in ("L12 C768, 8 x 4096, DeepEmbed", "L24 C2048, 8 x 2048, DeepEmbed")
    }
    scaled = {(row["preset"], row["file"], row["scaling"], row["gpus"]): row for row in many["rows"]}
    most, card = max(row["gpus"] for row in many["rows"]), gpu(many["machine"])
    whole, weak = scaled["7b", "zero2", "weak", most], scaled["1.5b", "zero2", "weak", most]
    ratios = [ratio for row in kernels["rows"] for ratio in row["faster_than"].values()]
    one, batch = (speed["speed"][pieces]["tokens_per_second"] for pieces in ("1", "512"))
    state = min((row for row in tuned["tuned"] if row["tune"] == "state"), key=lambda row: row["val_loss"])
    compared = results("learning")
    race = {"steps": compared["settings"]["steps"]} | {
        name: found["best_loss"]["mean"] for name, found in compared["summary"]["contestants"].items()
    }
    docs = f"{root}docs"
    rows = [
        [
            "Loss of the model of `make demo` on held-out Bach chorales",
            f"{loss:.3f} nats per token ({order:.0f}-gram model: {ngram:.3f})",
            f"[music.md]({docs}/music.md#what-the-models-learn)",
        ],
        [
            f"Loss of a `0.1b` model on held-out pieces of music21's corpus, after {corpus['minutes']:.1f} minutes of "
            f"training on one {gpu(corpus['machine'])}",
            f"{bits_of_scores(corpus):.2f} bits per note",
            f"[music.md]({docs}/music.md#what-the-models-learn)",
        ],
        [
            f"Lowest validation losses in {race['steps']} steps: `0.1b` with Muon, `0.1b` with AdamW, a Transformer",
            ", ".join(f"{race[name]:.3f}" for name in ("muon", "adamw", "transformer"))
            + " nats per token, in this order",
            f"[training.md]({docs}/training.md#muon-adamw-and-a-transformer-compared)",
        ],
        [
            "Training speed of a v8 model with 12 layers of width 768",
            steps["L12 C768, 8 x 4096, DeepEmbed"],
            f"[performance.md]({docs}/performance.md)",
        ],
        [
            "Training speed of a v8 model with 24 layers of width 2048",
            steps["L24 C2048, 8 x 2048, DeepEmbed"],
            f"[performance.md]({docs}/performance.md)",
        ],
        [
            "Training speed of `7b --channel_mix x070`",
            f"{whole['tokens_per_second']:,.0f} tokens/s ({whole['mfu']:.0%} MFU) on {most} {card}s",
            f"[cluster.md]({docs}/cluster.md#scaling)",
        ],
        [
            "Speed-up of training `1.5b --channel_mix x070` with ZeRO-2 and a constant batch per GPU",
            f"on {most} {card}s, {weak['times_one_gpu']:.2f} times the throughput of one {card}",
            f"[cluster.md]({docs}/cluster.md#scaling)",
        ],
        [
            "Speed of the WKV7s kernels, forward and backward pass together",
            f"{min(ratios):.1f} to {max(ratios):.1f} times as fast as flash-linear-attention on an "
            f"{gpu(kernels['machine'])}",
            f"[performance.md]({docs}/performance.md#the-wkv7s-kernels)",
        ],
        [
            f"Speed of generation with a `0.1b` model on one {gpu(speed['machine'])}",
            f"{one:,.0f} tokens/s for one piece, {batch:,.0f} tokens/s for 512 pieces at once",
            f"[performance.md]({docs}/performance.md#generation)",
        ],
        [
            "Tuning to a composer with `--tune state`",
            f"{tuned['state_over_all']:.0%} of the loss reduction of full fine-tuning, "
            f"with {state['share']:.2%} of its trained parameters",
            f"[tuning.md]({docs}/tuning.md#how-much-a-state-learns)",
        ],
        [
            f"Resuming a run that was killed {kills['kills']} times",
            how_often("resumed from a damaged checkpoint", kills["resumed_from_a_damaged_one"]),
            f"[training.md]({docs}/training.md#checkpoints-and-resuming)",
        ],
    ]
    return f"""
MFU is the model FLOP utilization ([definition]({docs}/performance.md#training-on-one-gpu)). `--channel_mix x070` is
RWKV v7; the other RWKV models are v8.

{table(["measured", "result", "details"], rows)}
"""


def presets(root: str) -> str:
    """Return the model sizes."""
    rows = [[f"`{name}`", str(shape["n_layer"]), str(shape["n_embd"])] for name, shape in PRESETS.items()]
    return f"\n{table(['`--preset`', 'layers', 'width'], rows)}\n"


def bits_of_scores(corpus: dict) -> float:
    """Return the bits per note of the held-out pieces of music21's corpus, from corpus.json."""
    pieces = [figures for name, figures in corpus["corpora"].items() if name not in PROGRAMS]
    notes = sum(figures["notes"] for figures in pieces)
    return sum(figures["bits_per_note"] * figures["notes"] for figures in pieces) / notes


def losses(root: str) -> str:
    """Return the losses of the demo's model and of `0.1b` on music21's corpus beside those of n-gram models."""
    bach, corpus = results("demo"), results("corpus")
    first, second = (made["evaluation"]["val"] for made in (bach, corpus))
    counts = corpus["data"]["splits"]["train"]
    cells = []
    for name, key in (
        ("the trained model", ""),
        (f"{first['ngram']:.0f}-gram model", "ngram_"),
        ("bigram model", "bigram_"),
        ("unigram model", "unigram_"),
    ):
        row = [name]
        for val in (first, second):
            nats = val[f"{key}nats_per_token"]
            row += [f"{nats:.3f}", f"{nats * val['bits_per_note'] / val['nats_per_token']:.2f}"]
        cells.append(row)
    heads = [
        "model",
        "chorales: nats per token",
        "chorales: bits per note",
        "corpus: nats per token",
        "corpus: bits per note",
    ]
    return f"""
The table compares two models with n-gram models on held-out pieces:

- The *chorale model* of `make demo` has 3 layers of width 128. It was trained on {bach["machine"]["cores"]} CPU cores
  and evaluated on {first["targets"]:,.0f} tokens of held-out chorales
  ([demo.json]({root}benchmarks/results/demo.json)).
- The *corpus model* has 12 layers of width 768 (preset `0.1b`). It was trained on music21's corpus and on the music of
  games and other programs ({counts["pieces"]:,} training pieces, {counts["tokens"]:,} tokens) and evaluated on held-out
  pieces of both. The training took {corpus["minutes"]:.1f} minutes for {corpus["steps"]:,} steps on one
  {gpu(corpus["machine"])} ([corpus_run.py]({root}benchmarks/corpus_run.py),
  [corpus.json]({root}benchmarks/results/corpus.json)). The table shows the checkpoint with the lowest validation loss,
  that of step {corpus["step"]:,}. The options of train.py were `{corpus["options"]}`.

The columns "chorales" are for the chorale model, and the columns "corpus" are for the corpus model:

{table(heads, cells)}

On the held-out pieces of music21's corpus alone, the corpus model's loss is {bits_of_scores(corpus):.2f} bits per note.

![Training and validation loss of the corpus model]({root}benchmarks/results/corpus/curve.png)
"""


def parts(root: str) -> str:
    """Return the bits per note of each corpus, with separate parts and with merged parts."""
    result = results("parts")
    earlier = results("parts_79253ac")["tokenizers"]["remi"]  # measured with a tokenizer that was removed afterwards
    names = {"bach": "chorales (bach)", "ryansMammoth": "fiddle tunes (ryansMammoth)"}
    rows = [
        [names.get(corpus, corpus)]
        + [
            cell
            for each in (figures, earlier[corpus])
            for cell in (f"{each['notes']:,}", f"{each['bits_per_note']:.3f}")
        ]
        for corpus, figures in result["corpora"].items()
    ]
    heads = ["held-out pieces", "separate parts: notes", "separate parts: bits per note"]
    heads += ["merged parts: notes", "merged parts: bits per note"]
    steps = result["plain"].split("--steps ")[1]
    return f"""
The next table shows how the loss changes if parts are kept separate. The `0.1b` preset was trained on three of
music21's corpora for {steps} steps ({gpu(result["machine"])}). For the columns "separate parts", the tokenizer was
`multitrack` ([parts.json]({root}benchmarks/results/parts.json)). For the columns "merged parts", it was an earlier
tokenizer, modeled on MidiTok's REMI, which merged parts that share an instrument. If two of these parts started a note
of the same pitch together, only the longer note was kept, so these columns count fewer notes (`benchmarks/parts.py` at
commit 79253ac, [figures]({root}benchmarks/results/parts_79253ac.json)).

{table(heads, rows)}
"""


def holes(root: str) -> str:
    """Return the bits per note of the true music in holes, with more and with less context."""
    result = results("corpus")
    bits = {(hole["context_bars"], hole["hole_bars"], hole["name"]): hole["bits_per_note"] for hole in result["holes"]}
    compared = (
        ("bars, both sides", "bars, left side only"),
        ("inner parts, outer parts given", "inner parts without the outer parts"),
    )
    rows = []
    for size in dict.fromkeys(key[:2] for key in bits):
        row = [f"{size[0]}", f"{size[1]}"]
        for more, less in compared:
            given, without = bits[(*size, more)], bits[(*size, less)]
            row += [f"{given:.2f}", f"{without:.2f}", f"{100 * (given / without - 1):+.1f}%"]
        rows.append(row)
    heads = ["context bars on each side", "bars with holes", "whole bars: both sides", "whole bars: left side only"]
    heads += ["whole bars: difference", "inner parts: outer parts given", "inner parts: outer parts not given"]
    heads += ["inner parts: difference"]
    return f"""
The next table shows how well the corpus model predicts the true music in holes of held-out pieces, in bits per note
([corpus.json]({root}benchmarks/results/corpus.json)). In each of two cases, it compares more context with less:

- *Whole bars.* All parts of some bars are holes. The model reads the context bars on both sides, or only those before
  the holes.
- *Inner parts.* The inner parts of some bars are holes (all parts except the first and the last one). The model reads
  the context bars before the holes. It also reads the outer parts, both in these context bars and in the bars
  with holes, or it reads no outer parts at all.

If a difference is negative, the loss is lower with more context.

{table(heads, rows)}
"""


def renamed(lines: str) -> str:
    """Return text that an earlier version of `evaluate` printed, with the column titles of this version."""
    titles = {
        "neighbor's copy": "copy of neighbor",
        "random real": "random real bar",
        "prompt's copy": "copy of prompt",
    }
    for old, new in titles.items():
        lines = re.sub(f" {{{len(new) - len(old)}}}{old}(?=  |$)", new, lines, flags=re.MULTILINE)
    return lines


def measures(root: str) -> str:
    """Return what `evaluate` prints about the music that the corpus model writes, and some of this music."""
    result, images = results("corpus"), f"{root}benchmarks/results/corpus"
    captions = {
        "completions": (
            "`evaluate --samples` measures eight bars that follow four given bars, in real pieces and in the model's "
            "completions:",
        ),
        "fills": (
            "`evaluate --fills` compares the model's fills and three baselines with the true bars. [Evaluate a "
            "model](#evaluate-a-model) describes the baselines. Higher values are better:",
            "The model then fills the holes again. For each part, a class of one control is requested. The columns "
            '"requested" are for these fills, and the columns "not requested" are for the earlier ones. "Exactly" is '
            'the share of cells in the requested class, and "within 1" the share in this class or in one next to it:',
            "`evaluate --fills` also computes the copy rate:",
            "`evaluate --fills` also compares descriptors with those of a second set of real bars. The column "
            '"fills" gives the divergence of the fills from this set. The column "real bars" gives the divergence of '
            "the true bars, which the fills replace, from the same set:",
        ),
        "mirex": (
            "`evaluate --mirex` compares continuations of twelve bars with the real music, and with a copy of the "
            "prompt:",
            "It also compares the continuations and the copy with the true bars. Higher values are better:",
        ),
    }
    texts = "\n\n".join(
        f"{caption}\n\n```text\n{renamed(lines)}\n```"
        for name, of_command in captions.items()
        for caption, lines in zip(of_command, "\n".join(result["tables"][name]).split("\n\n"), strict=True)
    )
    titles = {
        "continued": "The model reads four bars of a chorale and writes twelve",
        "filled-in": "The model writes the missing bars 5 to 8",
        "bass-line": "The model writes the bass under the other three voices",
        "harmonized": "The model writes three voices under the soprano",
        "fiddle-tune": "The model reads four bars of a fiddle tune and writes twelve",
    }
    rolls = "\n\n".join(
        f"{title} ([listen]({images}/{name}.mid)):\n\n![Piano roll: {title[0].lower()}{title[1:]}]({images}/{name}.png)"
        for name, title in titles.items()
    )
    return f"""
The following tables are what `evaluate` prints for the corpus model.
[How the music is measured](#how-the-music-is-measured) defines the measures.

{texts}

The piano rolls show music that the corpus model has written. The pale notes are given; they are from a held-out chorale
and a held-out fiddle tune.

{rolls}
"""


def step(root: str) -> str:
    """Return the throughput of training on one GPU."""
    h200, h100, limited = results("step_h200"), results("step_h100"), results("step_24gib")
    rows = []
    for name, row in h100["rows"].items():
        speeds = [f"{x['tokens_per_second']:,.0f} | {x['mfu']:.0%}" for x in (h200["rows"][name], row)]
        v8 = name.endswith(", DeepEmbed")
        rows.append([name.removesuffix(", DeepEmbed"), "v8" if v8 else "v7", *speeds, f"{row['peak_gib']:.1f}"])
    small = [
        [name, row["recompute"], f"{row['tokens_per_second']:,.0f}", f"{row['mfu']:.0%}", f"{row['peak_gib']:.1f}"]
        for name, row in limited["rows"].items()
    ]
    source = f"{root}benchmarks/results"
    heads = ["layers, width, rows x tokens", "model", "H200, tokens/s", "H200, MFU", "H100, tokens/s", "H100, MFU"]
    heads += ["H100, peak GiB"]
    return f"""
The table gives tokens per second on one GPU with DeepSpeed ZeRO-2, bf16, a vocabulary of 20,096 tokens and no
activation checkpointing. The first column gives the number of layers (L), the width (C), the rows per step and the
tokens per row. v8 is the default model; v7 (`--channel_mix x070`) has no DeepEmbed. The H200 was measured at commit
{h200["machine"]["commit"]} ([step_h200.json]({source}/step_h200.json)) and the H100 at commit
{h100["machine"]["commit"]} ([step_h100.json]({source}/step_h100.json)).

{table(heads, rows)}

MFU (model FLOP utilization) is 6 x matrix parameters x tokens per second / 989 TFLOP/s, the bf16 peak of H100 and H200.

In the next table, the v8 model runs on an {gpu(limited["machine"])} with GPU memory limited to
{limited["limit_gib"]} GiB ([step_24gib.json]({source}/step_24gib.json)). In the row with "offload", the optimizer
states are in host memory (`zero2_offload.json`):

{table(["layers, width, rows x tokens", "`--recompute`", "tokens/s", "MFU", "peak GiB"], small)}
"""


def kernels(root: str) -> str:
    """Return the times of the WKV7s operator beside flash-linear-attention's, and on a CPU."""
    result, cpu, portable = results("wkv7s_gpu"), results("wkv7s_cpu"), results("wkv7s_portable")
    source = f"{root}benchmarks/results"
    rows = [
        [f"{row['B']} x {row['T']:,} x {row['H']}", *(f"{row[name]['both_ms']:.2f}" for name in result["operators"])]
        + [f"{min(row['faster_than'].values()):.1f} to {max(row['faster_than'].values()):.1f}"]
        for row in result["rows"]
    ]
    slower = [row["slower"] for row in portable["rows"]]
    [loop] = cpu["rows"]
    return f"""
The table gives the time of the forward and the backward pass together, in milliseconds on an
{gpu(result["machine"])}, with bf16 and head size {result["N"]}. All times were measured in one run at commit
{result["machine"]["commit"]} ([wkv7s_gpu.json]({source}/wkv7s_gpu.json)). The columns "fla" are for the operator
`chunk_rwkv7` of flash-linear-attention, in its default form and with `safe_gate`.

{table(["rows x tokens x heads", "this project", "fla", "fla, `safe_gate`", "speed-up over both forms of fla"], rows)}

If the kernels are compiled as PTX for compute capability 8.0 instead of for the GPU itself, they take
{min(slower):.2f} to {max(slower):.2f} times as long ([wkv7s_portable.json]({source}/wkv7s_portable.json)). On
{cpu["machine"]["threads"]} CPU cores in fp32, the operator is {loop["faster"]["both_ms"]:.0f} times as fast as a loop
over tokens ({loop["B"]} rows x {loop["T"]} tokens x {loop["H"]} heads,
[wkv7s_cpu.json]({source}/wkv7s_cpu.json)).
"""


def fused(root: str) -> str:
    """Return the times of the fused operators beside torch.compile's."""
    result = results("fused")
    rows = []
    for row in result["rows"]:
        backward = row.get("backward", {}).get("us")
        cells = [row["forward"]["us"], row["compiled"]["forward_us"], backward, row["compiled"]["backward_us"]]
        rows.append([row["operator"], str(row["C"]), *("" if us is None else f"{us:.0f}" for us in cells)])
    heads = ["operator", "width", "forward", "forward, compiled", "backward", "backward, compiled"]
    return f"""
The table gives the time for {result["tokens"]:,} tokens in microseconds on an {gpu(result["machine"])}. The columns
with "compiled" give the time of the unfused PyTorch code under `torch.compile`
([fused.json]({root}benchmarks/results/fused.json)). The operators are:

- `norm_mix of n`: a layer norm followed by the token shift, which mixes each token with the previous one in n different
  ways.
- `gates`: the element-wise part of time mixing, that is, decay, in-context learning rate, value and keys.
- `norm_bonus_gate`: the end of time mixing, that is, group norm, bonus and output gate.
- `relu_squared`: the activation of channel mixing.
- `embed_gate`: DeepEmbed.
- `embedding`: the lookup of the tokens' embeddings.
- `cross_entropy`: the loss. Its gradient is computed in the forward pass.

{table(heads, rows)}
"""


def generation(root: str) -> str:
    """Return the throughput of generation."""
    rows = []
    for name in ("generation_cuda_speed", "generation_cpu_speed"):
        result = results(name)
        machine = result["machine"]
        device = gpu(machine) if "gpu" in machine else f"{machine['threads']} CPU cores"
        link = f"[{name}.json]({root}benchmarks/results/{name}.json)"
        for pieces, x in result["speed"].items():
            if pieces.isdecimal():
                rows.append([device, pieces, f"{x['tokens_per_second']:,.0f}", f"{x['first_token_ms']:.0f}", link])
    grown = results("generation_cuda_memory")["memory"]["bytes_grown"]
    growth = f"{grown} bytes larger than" if grown else "as large as"
    cpu = results("generation_cpu_speed")
    package, threads = cpu["speed"]["rwkv_package"], cpu["machine"]["threads"]
    return f"""
The table gives the throughput of the `0.1b` preset with the `midi-llm` tokenizer:

{table(["device", "pieces at once", "tokens/s", "ms to the first token", "source"], rows)}

On a CPU, a C++ kernel reads the matrices in bf16, so the weights are rounded as on a GPU. A separate comparison with
the `rwkv` package ran in several rounds on {threads} cores. In each round, this project generated some tokens of a
piece, and then the package ran the model for as many tokens. The weights were the same, but the package ran without
DeepEmbed. The median speed of this project was {package["ours"]:.0f} tokens/s, including sampling. The median speed of
the package was {package["tokens_per_second"]:.0f} tokens/s in fp32, without sampling. The ratio of the two speeds was
computed for each round, and its median is {package["ratio"]}. For each token, this project reads
{package["gb_read_per_token"] * 1000:.0f} MB. At its median speed, it therefore reads
{package["gb_per_second_read"]:.0f} GB/s. A plain copy in memory reads and writes
{package["gb_per_second_copy"]:.0f} GB/s in total on the same machine.

The memory in use does not depend on the length of a piece. After 100,000 generated tokens it is {growth} after 1,000
tokens ([generation_cuda_memory.json]({root}benchmarks/results/generation_cuda_memory.json)).
"""


def play(root: str) -> str:
    """Return how soon the page of `play` shows new notes and plays them."""
    result = results("play")
    names = {"included": "the included model", "run": "the model of `make demo`", "tiny": "`tiny` with random weights"}
    names["0.1b"] = "`0.1b` with random weights"
    keys = ("first_note_cold", "first_note", "first_note_max", "heard")
    rows = [[names[name], *(f"{x[key]:.1f}" for key in keys)] for name, x in result["models"].items()]
    heads = ["model", "first note of the first fill", "first note of later fills, median"]
    heads += ["first note of later fills, maximum", "first fill heard"]
    return f"""
On the page of `play`, each model filled in four bars of a part several times, on {result["machine"]["cores"]} CPU
cores. Each fill had two candidates. The columns "first note" give the seconds from the click until the page has the
first new note. The last column gives the seconds from the start of the command until the first fill can be heard
([play.json]({root}benchmarks/results/play.json)):

{table(heads, rows)}
"""


def busy_computer(root: str) -> str:
    """Return how other programs affect the speed of training and generation on a CPU."""
    result = results("busy_computer")
    cores = result["machine"]["cores"]
    works = {
        "train 3x128": "training, 3 layers of width 128",
        "train 8x256": "training, 8 layers of width 256",
        "generate 3x128": "generation, 3 layers of width 128",
        "generate 12x768": "generation, 12 layers of width 768",
    }
    busy = ("one busy process", "a busy process per core")
    rows = [
        [
            name,
            f"{result[work]['alone']['project']['over_default']:.2f}",
            *(
                f"{result[work][load][setting]['over_alone']:.2f}"
                for load in busy
                for setting in ("project", "default")
            ),
        ]
        for work, name in works.items()
    ]
    heads = ["work", "no other program: this project relative to torch's default"]
    for load in ("one busy program", "a busy program per core"):
        heads += [f"{load}: this project", f"{load}: torch's default"]
    return f"""
While torch's threads wait for work, they spin by default, which occupies their cores. If other programs need the cores,
this project makes the waiting threads sleep (`rwkv_music/openmp.py`). The table compares this project with torch's
default on {cores} CPU cores. The first column of numbers gives the speed of this project relative to that of torch's
default, with no other program. The other columns are for this project or for torch's default. They give its speed
beside busy programs, relative to its own speed with no other program. A busy program uses one core all the time
([busy_computer.json]({root}benchmarks/results/busy_computer.json)):

{table(heads, rows)}
"""


def prepare(root: str) -> str:
    """Return the speed and the memory of `prepare`."""
    result = results("prepare")
    rate, memory = result["rates"]["files_per_second_and_core"], result["memory"]
    peers = {"midi-llm": f"{rate['MIDI-LLM-tokenizer']:,.0f} (MIDI-LLM-tokenizer)"}
    rows = [
        [f"`{name}`", f"{rate[name]:,.0f}", f"{rate[f'prepare {name}']:,.0f}", peers.get(name, "")]
        for name in rate
        if f"prepare {name}" in rate
    ]
    sizes = " and ".join(
        f"{x['prepare_mib'] + x['worker_mib']:.0f} MiB of memory for {int(name.split()[0]):,} files"
        for name, x in memory.items()
        if name.endswith("files")
    )
    return f"""
The table gives the number of files that are processed per second on one CPU core
([prepare.json]({root}benchmarks/results/prepare.json)):

{table(["tokenizer", "only tokenizing", "all of `prepare`", "only tokenizing, reference implementation"], rows)}

With one worker process, `prepare` needs {sizes}.
"""


def scaling(root: str) -> str:
    """Return the throughput on several GPUs of one host."""
    result = results("scaling")
    by_key = {(row["preset"], row["file"], row["scaling"], row["gpus"]): row for row in result["rows"]}
    counts = sorted({row["gpus"] for row in result["rows"]} - {1})
    columns = [(kind, gpus) for kind in ("weak", "strong") for gpus in counts]
    heads = ["preset", "DeepSpeed file", "tokens/s on one GPU"]
    heads += [
        f"speed-up on {n} GPUs, constant {'batch per GPU' if kind == 'weak' else 'total batch'}" for kind, n in columns
    ]
    heads += [f"optimizer states in GB per GPU, with {', '.join(map(str, (1, *counts)))} GPUs"]
    rows = []
    for preset in ("0.1b", "1.5b"):
        for file in sorted({row["file"] for row in result["rows"]}):
            speedups = [
                f"{by_key[key]['times_one_gpu']:.2f}" if (key := (preset, file, *column)) in by_key else "not measured"
                for column in columns
            ]
            held = [by_key[preset, file, "weak", gpus]["optimizer_bytes"] / 1e9 for gpus in (1, *counts)]
            one = f"{by_key[preset, file, 'weak', 1]['tokens_per_second']:,.0f}"
            rows.append([f"`{preset}`", file, one, *speedups, ", ".join(f"{x:.1f}" for x in held)])
    whole = by_key["7b", "zero2", "weak", counts[-1]]
    return f"""
The table gives the throughput of one {gpu(result["machine"])}, the speed-up of up to {counts[-1]} GPUs of the same host
over one GPU, and the memory for optimizer states. The model was v7 (`--channel_mix x070`), and the commit was
{result["machine"]["commit"]} ([scaling.json]({root}benchmarks/results/scaling.json)):

{table(heads, rows)}

![Speed-up, communication and memory by number of GPUs]({root}benchmarks/results/scaling.png)

`7b --channel_mix x070` ({whole["batch"][0]} x {whole["batch"][1]} tokens per step, ZeRO-2) trains at
{whole["tokens_per_second"]:,.0f} tokens per second on {counts[-1]} of these GPUs. The MFU is {whole["mfu"]:.0%}, and
the peak memory is {whole["peak_gib"]:.0f} GiB per GPU. `--recompute auto` selects `{whole["recompute"]}` for this
model.
"""


def tuning(root: str) -> str:
    """Return how much of a composer's style state tuning and full fine-tuning learn."""
    result = results("tuning")
    base, composer = result["base"], result["composer"]
    rows = [
        [f"`--tune {row['tune']}`", f"{row['lr']:g}", f"{row['parameters']:,}"]
        + [f"{row['share']:.2%}", f"{row['checkpoint_bytes'] / 1e6:.1f}", f"{row['val_loss']:.3f}"]
        for row in result["tuned"]
    ]  # fmt: skip
    best = {
        tune: min((row for row in result["tuned"] if row["tune"] == tune), key=lambda row: row["val_loss"])
        for tune in ("all", "state")
    }
    heads = ["option", "learning rate", "trained parameters", "share of all parameters", "checkpoint in MB"]
    heads += ["validation loss"]
    return f"""
A base model with {base["model"]["layers"]} layers of width {base["model"]["width"]} was trained on corpora of music21
other than Palestrina. It was then tuned for {result["steps"]} steps on {composer["train"]["pieces"]} movements by
Palestrina. Before tuning, its loss on {composer["val"]["pieces"]} held-out movements by Palestrina was
{result["untuned_val_loss"]:.3f} nats per token
([tuning.json]({root}benchmarks/results/tuning.json)):

{table(heads, rows)}

If both options are compared at the best of their three learning rates, `--tune state` achieves
{result["state_over_all"]:.0%} of the loss reduction of `--tune all` (full fine-tuning). It trains only
{best["state"]["share"]:.2%} of the parameters ([tuning.py]({root}benchmarks/tuning.py)).
"""


def saving(root: str) -> str:
    """Return how long a checkpoint interrupts training."""
    result = results("saving")
    rows = [
        [f"`--save_mode {mode}`", f"{x['checkpoint_mb']}", f"{x['standing_still_s']:.2f}", f"{x['step_s']:.2f}"]
        + ["" if x["step_while_writing_s"] is None else f"{x['step_while_writing_s']:.2f}"]
        for mode, x in ((mode, result[mode]) for mode in ("overlapped", "blocking"))
    ]
    heads = ["option", "size of a checkpoint in MB", "pause in s", "duration of a step in s"]
    heads += ["duration of a step while a checkpoint is written, in s"]
    return f"""
The table shows how long a checkpoint of a small model interrupts training on {result["machine"]["cores"]} CPU cores,
and how much the steps slow down while the checkpoint is written. With `--save_mode blocking`, no step runs while a
checkpoint is written ([saving.json]({root}benchmarks/results/saving.json)):

{table(heads, rows)}
"""


def kills(root: str) -> str:
    """Return what happened to runs that were killed many times."""
    result = results("kills")
    partial = result["left_a_partial_one"]
    text = f"""
A run that saves a checkpoint every two steps was killed {result["kills"]} times. Half of the kills came at random
moments, the other half while the run wrote a checkpoint ([kills.json]({root}benchmarks/results/kills.json)).
After {"each" if partial == result["kills"] else partial} of the {result["kills"]} kills, even those at random
moments, the run folder contained a partly written checkpoint, which still had its temporary name.
{result["damaged_under_a_steps_name"] or "No"} checkpoints with a final name were damaged. The
run {how_often("resumed from a damaged checkpoint", result["resumed_from_a_damaged_one"])}.
"""
    if best := result.get("best"):
        wrong = best["best_not_the_lowest_loss"]
        exceptions = f", with {wrong} exceptions" if wrong else ""
        text += f"""
A run that validates after every step was killed {best["kills"]} times. Half of the kills came at random moments. The
other half came soon after a validation with a new lowest loss, while the checkpoint of this step was being saved. The
best checkpoint was {how_often("damaged", best["best_not_whole"])}. After every kill{exceptions}, the best checkpoint
was that of the step with the lowest loss among the steps up to the newest checkpoint. Later steps do not count, because
the resumed run repeats them. At {best["kills_before_the_best_was_saved"]} of the kills, the lowest loss so far
was that of a step after the newest checkpoint. The losses of all steps were measured by an identical run that was
never killed.
"""
    return text


def resumption(root: str) -> str:
    """Return how much the losses of a run that resumes under another layout differ from the uninterrupted run."""
    rows = []
    for name in ("resumption_cpu", "resumption_h100", "resumption_h200"):
        result = results(name)
        arguments, device = result["arguments"], result["machine"].get("gpu", "CPU")
        largest = [row["largest"] for row in result["rows"]]
        rows.append([f"`{arguments['preset']}`", f"{', '.join(map(str, arguments['ranks']))}", device])
        rows[-1] += [f"{statistics.median(largest):.1e}", f"{max(largest):.1e}"]
        rows[-1] += [f"[{name}.json]({root}benchmarks/results/{name}.json)"]
    at = results("resumption_cpu")["arguments"]["at"]
    return f"""
The table shows how much the losses change if a run resumes on another number of ranks or under another ZeRO stage. Each
row covers several rank counts. For each rank count, a ZeRO-2 run saved a checkpoint at step {at} and continued for 20
steps. Each checkpoint was then resumed with every rank count of the row, under `zero1.json`,
`zero2.json` and `zero3.json`. The deviation of a resumed run is the largest difference between its 20 losses and those
of the run that saved the checkpoint, in nats per token. The table gives the median and the maximum of the deviations.

{table(["preset", "rank counts", "device of each rank", "median deviation", "maximum deviation", "source"], rows)}
"""


def learning(root: str) -> str:
    """Return how fast the model learns with AdamW and with Muon, beside a Transformer of the same size."""
    result = results("learning")
    settings, found = result["settings"], result["summary"]
    names = {
        "adamw": "RWKV, AdamW",
        "muon": "RWKV, Muon",
        "x070": "RWKV, Muon, `--channel_mix x070`",
        "transformer": "Transformer, AdamW",
        "muon_long": "RWKV, Muon, rows of {ctx_len:,} tokens",
        "transformer_long": "Transformer, AdamW, rows of {ctx_len:,} tokens",
    }
    long_rows = next(run["ctx_len"] for run in result["runs"] if run["ctx_len"] > settings["ctx_len"])
    rows = [
        [name.format(ctx_len=long_rows), f"{x['lr']:g}", f"{x['weight_decay']:g}", f"{x['parameters'] / 1e6:.0f}M"]
        + [str(x["seeds"]), with_spread(x["best_loss"]), f"{x['best_step']['mean']:.0f}"]
        + [f"{x['tokens_per_second']:,.0f}"]
        for key, name in names.items()
        for x in [found["contestants"][key]]
    ]
    ratio = found["muon_to_the_best_loss_of_adamw"]
    steps, seconds = (ratio[f"{what}_over_adamw"] for what in ("steps", "seconds"))
    grids = {
        key: " and ".join(f"({lr:g}, {decay:g})" for lr, _, decay in sorted(result["grids"][key]))
        for key in ("adamw", "muon", "transformer")
    }
    large = results("step_muon")
    adamw, muon = (large[name] for name in ("adamw", "muon"))
    one = adamw["batch"][0] * adamw["batch"][1]
    heads = [
        "model and optimizer",
        "learning rate",
        "weight decay",
        "parameters",
        "number of seeds",
        "lowest validation loss",
        "step of the lowest loss",
        "tokens/s",
    ]
    return f"""
All models were trained for {settings["steps"]} steps of {settings["batch_size"]} x {settings["ctx_len"]:,} tokens on
chorales, masses and fiddle tunes ({gpu(result["machine"])},
[learning.json]({root}benchmarks/results/learning.json)). The RWKV models have the preset `{settings["preset"]}`. The
Transformer has the same width and number of layers. It has rotary position embeddings, SwiGLU, normalized queries and
keys and dropout 0.1, and runs under `torch.compile`. These pairs (learning rate, weight decay) were tried:
{grids["adamw"]} for RWKV with AdamW, {grids["muon"]} for RWKV with Muon, and {grids["transformer"]} for the
Transformer. The table uses the better pair of each. The runs with `--channel_mix x070` and with
longer rows use the pair of the same model and optimizer; no other pairs were tried for them. The lowest validation loss
of each run, in nats per token, is averaged over the seeds and given with its standard deviation:

{table(heads, rows)}

- To reach AdamW's lowest validation loss, Muon needs {steps["mean"]:.0%} of AdamW's steps ({steps["least"]:.0%} to
  {steps["most"]:.0%}, depending on the seed) and {seconds["mean"]:.0%} of AdamW's time. After step
  {found["contestants"]["muon"]["best_step"]["mean"]:.0f}, the models trained with Muon overfit.
- A step with Muon takes longer than one with AdamW, because Muon orthogonalizes matrices. The difference is largest for
  large models with few tokens per step. For {adamw["model"]["layers"]} layers of width {adamw["model"]["width"]} and
  {one:,} tokens per step on one GPU, a step takes {muon["step_ms"]:.0f} ms instead of {adamw["step_ms"]:.0f} ms
  ([step_muon.json]({root}benchmarks/results/step_muon.json)). Several GPUs divide this work among them.

![Validation loss by steps and by seconds]({root}benchmarks/results/learning.png)
"""


def deepembed(root: str) -> str:
    """Return how fast the model learns without DeepEmbed and with two forms of it."""
    result, before = results("deepembed"), results("learning")["summary"]["contestants"]
    settings, found = result["settings"], result["summary"]["contestants"]
    differences = result["summary"]["differences"]
    names = {
        "x070": "x070: no DeepEmbed (`--channel_mix x070`)",
        "x080": "x080: a vector multiplies the output (`--channel_mix x080`)",
        "gate32": "gate: a matrix gates the hidden layer (not in the package)",
    }

    def difference(key: str, base: str) -> str:
        x = differences.get(key, {}).get(base)
        return f"{x['loss']:+.4f}" if x else ""

    rows = [
        [name, f"{x['parameters'] / 1e6:.0f}M", with_spread(x["best_loss"]), difference(key, "x070")]
        + [difference(key, "x080"), f"{x['tokens_per_second']:,.0f}"]
        for key, name in names.items()
        for x in [found[key]]
    ]
    heads = ["form of DeepEmbed", "parameters", "lowest validation loss", "difference from x070"]
    heads += ["difference from x080", "tokens/s"]
    rates = " and ".join(f"{lr:g}" for lr in sorted(lr for lr, *_ in result["grids"]["gate32"]))
    against = differences["gate32"]["x070"]
    slower = 1 - found["gate32"]["tokens_per_second"] / found["x070"]["tokens_per_second"]
    # The text below states these facts in words.
    assert differences["x080"]["x070"]["loss"] > differences["x080"]["x070"]["spread"]
    assert differences["gate32"]["x080"]["wins"] and -against["spread"] < against["loss"] < 0
    assert {x["lr"] for x in found.values()} == {max(lr for lr, *_ in result["grids"]["gate32"])}
    earlier = {key: before[key]["best_loss"] for key in ("x070", "muon")}
    assert abs(earlier["x070"]["mean"] - earlier["muon"]["mean"]) < min(x["deviation"] for x in earlier.values())
    assert all(earlier[a]["mean"] < found[b]["best_loss"]["mean"] for a, b in (("x070", "x070"), ("muon", "x080")))
    return f"""
The table compares forms of DeepEmbed. The dataset, the number of steps and the tokens per step are those of [the
previous comparison](#muon-adamw-and-a-transformer-compared). The optimizer is Muon with weight decay
{settings["weight_decay"]:g} ({gpu(result["machine"])}, [deepembed.json]({root}benchmarks/results/deepembed.json)). The
learning rates {rates} were tried for each form. The table uses the higher one, which is better for all three forms. The
losses, in nats per token, are averaged over {found["x070"]["seeds"]} seeds and given with their standard deviation:

{table(heads, rows)}

- With these settings, the loss of x070 is lower than that of x080. The difference is larger than both standard
  deviations. With weight decay {before["muon"]["weight_decay"]:g}, which gives lower losses, the previous comparison
  shows no such difference ({with_spread(earlier["x070"])} for x070 and {with_spread(earlier["muon"])} for x080).
- The gate of the hidden layer is BlinkDL's later form of DeepEmbed. The loss with the gate is lower than that of x080
  by more than both standard deviations. It is also lower than that of x070, but by less than the larger of the two
  standard deviations. The condition for adding the gate to `--channel_mix` was a loss below that of both other forms by
  more than the spread of the seeds ([deepembed.py]({root}benchmarks/deepembed.py)). The gate does not meet it.
  The gate has no kernel of its own, so a model with the gate processes {slower:.0%} fewer tokens/s than x070. The gate
  was not measured with weight decay {before["muon"]["weight_decay"]:g}.

![Validation loss of the forms of DeepEmbed by steps and by seconds]({root}benchmarks/results/deepembed.png)
"""


def with_spread(statistic: dict[str, float]) -> str:
    """Return a mean and, if there are several runs, its standard deviation."""
    deviation = statistic.get("deviation")
    return f"{statistic['mean']:.4f}" + (f" ± {deviation:.4f}" if deviation else "")


def zero(root: str) -> str:
    """Return memory and traffic with each DeepSpeed file, and which file to use."""
    return f"""
The table compares the DeepSpeed files for several numbers of parameters and of GPUs, and recommends one of them in the
last column. Each node has {plan.GPUS_PER_NODE} GPUs with 80 GiB. The cells have the form A / B:

- A is the memory for weights, gradients and AdamW states, in GiB per GPU.
- B is the amount of data that each GPU sends to other nodes in a step of one micro-batch, in GB.

The recommended file is the first of zero1, zero2 and zero3 that needs less than {plan.ROOM_GIB} GiB. The rest of the 80
GiB remains for activations and buffers. If zeropp sends less to other nodes than zero3, zeropp is
recommended instead of zero3. [plan.py]({root}benchmarks/plan.py) computes A and B, and checks them against a two-rank
run ([plan.json]({root}benchmarks/results/plan.json)).

{plan.table()}
"""


BLOCKS: dict[str, Callable[[str], str]] = {
    block.__name__: block
    for block in (
        demo, summary, presets, losses, parts, holes, measures, step, kernels, fused, generation, play,
        busy_computer, prepare, scaling, tuning, saving, kills, resumption, learning, deepembed, zero,
    )
}  # fmt: skip


def with_tables(text: str, root: str) -> str:
    """Return a page with its generated blocks rewritten.

    Args:
        text: the page.
        root: the path from the page to the project's root, "" or ending with "/".
    """

    def block(match: re.Match) -> str:
        return f"{BEGIN.format(match[1])}\n{wrapped(BLOCKS[match[1]](root))}\n{END}"

    return BLOCK.sub(block, text)


def wrapped(text: str) -> str:
    """Return a block with paragraphs and lists wrapped at 120 characters, and tables, code and images unchanged."""
    fill = partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)

    def filled(part: str) -> str:
        if part.startswith(("|", "!", "```")):
            return part
        if part.startswith("- "):
            items = (" ".join(item.split()) for item in part[2:].split("\n- "))
            return "\n".join(fill(f"- {item}", subsequent_indent="  ") for item in items)
        return fill(part)

    return "\n" + "\n\n".join(map(filled, text.strip("\n").split("\n\n"))) + "\n"


def root_of(page: Path) -> str:
    """Return the path from a page to the project's root."""
    return "../" * (len(page.relative_to(PROJECT).parts) - 1)


if __name__ == "__main__":
    for page in pages():
        page.write_text(with_tables(page.read_text(encoding="utf-8"), root_of(page)), encoding="utf-8")
