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
    """Return one row for each kind of result."""
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
            "Held-out Bach chorales, `make demo`",
            f"{loss:.3f} nats per token ({order:.0f}-gram model: {ngram:.3f})",
            f"[music.md]({docs}/music.md#what-the-models-learn)",
        ],
        [
            f"Held-out pieces of music21's corpus, `0.1b` trained for {corpus['minutes']:.1f} minutes on one "
            f"{gpu(corpus['machine'])}",
            f"{bits_of_scores(corpus):.2f} bits per note",
            f"[music.md]({docs}/music.md#what-the-models-learn)",
        ],
        [
            f"Lowest validation loss in {race['steps']} steps: `0.1b` with Muon, `0.1b` with AdamW, a Transformer",
            ", ".join(f"{race[name]:.3f}" for name in ("muon", "adamw", "transformer")) + " nats per token",
            f"[training.md]({docs}/training.md#muon-adamw-and-a-transformer-compared)",
        ],
        [
            "Training, v8, 12 layers x 768",
            steps["L12 C768, 8 x 4096, DeepEmbed"],
            f"[performance.md]({docs}/performance.md)",
        ],
        [
            "Training, v8, 24 layers x 2048",
            steps["L24 C2048, 8 x 2048, DeepEmbed"],
            f"[performance.md]({docs}/performance.md)",
        ],
        [
            "Training, `7b --channel_mix x070`",
            f"{whole['tokens_per_second']:,.0f} tokens/s ({whole['mfu']:.0%} MFU) on {most} {card}s",
            f"[cluster.md]({docs}/cluster.md#scaling)",
        ],
        [
            "Scaling, `1.5b --channel_mix x070`, ZeRO-2, constant batch per GPU",
            f"on {most} {card}s, {weak['times_one_gpu']:.2f} times the throughput of one {card}",
            f"[cluster.md]({docs}/cluster.md#scaling)",
        ],
        [
            "WKV7s kernels, forward and backward",
            f"{min(ratios):.1f} to {max(ratios):.1f} times as fast as flash-linear-attention on an "
            f"{gpu(kernels['machine'])}",
            f"[performance.md]({docs}/performance.md#the-wkv7s-kernels)",
        ],
        [
            f"Generation, `0.1b`, on one {gpu(speed['machine'])}",
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
        "",
        "chorales: nats per token",
        "chorales: bits per note",
        "corpus: nats per token",
        "corpus: bits per note",
    ]
    return f"""
The table compares each of two models with n-gram models on held-out pieces:

- *The chorale model* of `make demo`, 3 layers x 128. It is trained on {bach["machine"]["cores"]} CPU cores and
  evaluated
  on {first["targets"]:,.0f} tokens of held-out chorales ([demo.json]({root}benchmarks/results/demo.json)).
- *The corpus model*, preset `0.1b`, 12 layers x 768. It is trained on music21's corpus and on the music of games and
  other programs ({counts["pieces"]:,} training pieces, {counts["tokens"]:,} tokens) and evaluated on held-out pieces of
  both. {corpus["steps"]:,} steps take {corpus["minutes"]:.1f} minutes on one {gpu(corpus["machine"])}
  ([corpus_run.py]({root}benchmarks/corpus_run.py), [corpus.json]({root}benchmarks/results/corpus.json)). The table
  shows the checkpoint with the lowest validation loss, that of step {corpus["step"]:,}. The options were
  `{corpus["options"]}`.

{table(heads, cells)}

On the held-out pieces of music21's corpus alone, the corpus model's loss is {bits_of_scores(corpus):.2f} bits per note.

![Training and validation loss of the corpus model]({root}benchmarks/results/corpus/curve.png)
"""


def parts(root: str) -> str:
    """Return bits per note of each corpus, and of the original music in holes by what the model has read."""
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
    heads = ["held-out pieces", "notes", "bits per note", "merged parts: notes", "merged parts: bits per note"]
    steps = result["plain"].split("--steps ")[1]
    return f"""
The next table shows what it costs to keep parts separate. The `0.1b` preset was trained with `multitrack` on three of
music21's corpora for {steps} steps ({gpu(result["machine"])}, [parts.json]({root}benchmarks/results/parts.json)).
The columns "merged parts" show the same training with an earlier tokenizer, modeled on MidiTok's REMI. That tokenizer
merged parts that share an instrument. Unisons between them were lost, so its pieces have fewer notes
(`benchmarks/parts.py`
at commit 79253ac, [figures]({root}benchmarks/results/parts_79253ac.json)).

{table(heads, rows)}
"""


def holes(root: str) -> str:
    """Return bits per note of the original music in holes, by what the corpus model has read."""
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
    heads = ["context bars", "bars with holes", "whole bars: both sides", "whole bars: left side only", "difference"]
    heads += ["inner parts: outer parts given", "inner parts: outer parts not given", "difference"]
    return f"""
The next table shows how well the corpus model predicts the true music in holes of held-out pieces, in bits per note
([corpus.json]({root}benchmarks/results/corpus.json)). It compares two cases, each with more and with less context:

- All parts of some bars are holes. The model reads the bars on both sides, or only those before the holes.
- The inner parts of some bars are holes (all parts except the first and the last one). The model reads the bars before
  the holes, with or without the outer parts in the bars of the holes.

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
            "`evaluate --fills` compares the model's fills and three baselines with the true bars. Higher values are "
            "better:",
            "The model then fills the holes again, with a requested class of one control for each part. "
            '"Exactly" is the share of cells in the requested class, and "within 1" the share in this class or in one '
            "next to it:",
            "`evaluate --fills` also computes the copy rate:",
            "It compares the descriptors of the fills, and those of the true bars, with the descriptors of other real "
            "bars:",
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
    return f"""
The table gives tokens per second on one GPU with DeepSpeed ZeRO-2, bf16, a vocabulary of 20,096 tokens and no
activation checkpointing. L is the number of layers and C the width. v8 is the default model; v7 (`--channel_mix x070`)
has no DeepEmbed. The H200 was measured at commit {h200["machine"]["commit"]}
([step_h200.json]({source}/step_h200.json)) and the H100 at commit {h100["machine"]["commit"]}
([step_h100.json]({source}/step_h100.json)).

{table(["layers, width, rows x tokens", "model", "H200", "MFU", "H100", "MFU", "peak GiB (H100)"], rows)}

MFU (model FLOP utilization) is 6 x matrix parameters x tokens per second / 989 TFLOP/s, the bf16 peak of H100 and H200.

In the next table, the v8 model runs on an {gpu(limited["machine"])} with GPU memory limited to
{limited["limit_gib"]} GiB ([step_24gib.json]({source}/step_24gib.json)):

{table(["layers, width, rows x tokens", "`--recompute auto` selects", "tokens/s", "MFU", "peak GiB"], small)}
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
{result["machine"]["commit"]} ([wkv7s_gpu.json]({source}/wkv7s_gpu.json)). `fla` is flash-linear-attention's
`chunk_rwkv7`, in its default form and with `safe_gate`.

{table(["rows x tokens x heads", "this project", "fla", "fla, `safe_gate`", "speed-up over fla"], rows)}

The same kernels, compiled as PTX for compute capability 8.0, take {min(slower):.2f} to {max(slower):.2f}
times as long as native kernels ([wkv7s_portable.json]({source}/wkv7s_portable.json)). On
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

On a CPU, a C++ kernel reads the matrices in bf16, so they are rounded as on a GPU. In a separate comparison on
{threads} cores, this project and the `rwkv` package took turns. In a turn, this project generated some tokens of a
piece, or the package ran the model for as many tokens. The weights were the same, but the package ran without
DeepEmbed. The median speed of this project was {package["ours"]:.0f} tokens/s, including sampling. The median speed of
the package was {package["tokens_per_second"]:.0f} tokens/s in fp32, without sampling. The median ratio of the two
speeds in a pair of turns is {package["ratio"]}. For each token, this project reads
{package["gb_read_per_token"] * 1000:.0f} MB, that is, {package["gb_per_second_read"]:.0f} GB/s at this speed. A plain
copy in memory moves {package["gb_per_second_copy"]:.0f} GB/s on the same machine.

The memory in use does not depend on the length of a piece. After 100,000 generated tokens it is {growth} after 1,000
tokens ([generation_cuda_memory.json]({root}benchmarks/results/generation_cuda_memory.json)).
"""


def play(root: str) -> str:
    """Return how soon the page of `play` answers."""
    result = results("play")
    names = {"included": "the included model", "run": "the model of `make demo`", "tiny": "`tiny`, random weights"}
    names["0.1b"] = "`0.1b`, random weights"
    keys = ("first_note_cold", "first_note", "first_note_max", "heard")
    rows = [[names[name], *(f"{x[key]:.1f}" for key in keys)] for name, x in result["models"].items()]
    heads = ["model", "first fill", "later fills, median", "later fills, longest", "sound after the start"]
    return f"""
On the page of `play`, the model wrote two candidates for four bars of a part, on {result["machine"]["cores"]} CPU
cores. The table gives the seconds from the click until the page has the first new note. The last column gives the
seconds from the start of the command until the first fill can be heard
([play.json]({root}benchmarks/results/play.json)):

{table(heads, rows)}
"""


def prepare(root: str) -> str:
    """Return the speed and the memory of `prepare`."""
    result = results("prepare")
    rate, memory = result["rates"]["files_per_second_and_core"], result["memory"]
    peers = {"midi-llm": f"MIDI-LLM-tokenizer {rate['MIDI-LLM-tokenizer']:,.0f}"}
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
The table gives the number of files per second and CPU core ([prepare.json]({root}benchmarks/results/prepare.json)):

{table(["tokenizer", "tokenizing alone", "all of `prepare`", "the reference implementation"], rows)}

With one worker process, `prepare` needs {sizes}.
"""


def scaling(root: str) -> str:
    """Return the throughput on several GPUs of one host."""
    result = results("scaling")
    by_key = {(row["preset"], row["file"], row["scaling"], row["gpus"]): row for row in result["rows"]}
    counts = sorted({row["gpus"] for row in result["rows"]} - {1})
    columns = [(kind, gpus) for kind in ("weak", "strong") for gpus in counts]
    heads = ["preset", "file", "tokens/s on one GPU"]
    heads += [
        f"speed-up, constant {'batch per GPU' if kind == 'weak' else 'total batch'}, {n} GPUs" for kind, n in columns
    ]
    heads += [f"GB of optimizer states per GPU on {', '.join(map(str, (1, *counts)))} GPUs"]
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
The table gives the throughput of one {gpu(result["machine"])}, the speed-up over it with up to {counts[-1]} GPUs of the
same host, and the memory for optimizer states. It was measured with the v7 model (`--channel_mix x070`) at commit
{result["machine"]["commit"]} ([scaling.json]({root}benchmarks/results/scaling.json)):

{table(heads, rows)}

![Speed-up, communication and memory by number of GPUs]({root}benchmarks/results/scaling.png)

`7b --channel_mix x070` ({whole["batch"][0]} x {whole["batch"][1]} tokens per step, ZeRO-2) trains at
{whole["tokens_per_second"]:,.0f} tokens per second on {counts[-1]} of these GPUs: {whole["mfu"]:.0%} MFU and
{whole["peak_gib"]:.0f} GiB per GPU. `--recompute auto` selects `{whole["recompute"]}` for it.
"""


def tuning(root: str) -> str:
    """Return what state tuning and full fine-tuning learn of a composer."""
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
    heads = ["", "learning rate", "trained parameters", "share of the model", "checkpoint MB", "validation loss"]
    return f"""
A base model ({base["model"]["layers"]} layers x {base["model"]["width"]}) was trained on corpora of music21
other than Palestrina. It was then tuned for {result["steps"]} steps on {composer["train"]["pieces"]} of Palestrina's
movements. Before tuning, its loss on
{composer["val"]["pieces"]} held-out movements was {result["untuned_val_loss"]:.3f} nats per token
([tuning.json]({root}benchmarks/results/tuning.json)):

{table(heads, rows)}

With the best of the three learning rates for each, tuning the state achieves {result["state_over_all"]:.0%} of the loss
reduction of full fine-tuning, with {best["state"]["share"]:.2%} of the trained parameters
([tuning.py]({root}benchmarks/tuning.py)).
"""


def saving(root: str) -> str:
    """Return how long a checkpoint interrupts training."""
    result = results("saving")
    rows = [
        [f"`--save_mode {mode}`", f"{x['checkpoint_mb']}", f"{x['standing_still_s']:.2f}", f"{x['step_s']:.2f}"]
        + ["" if x["step_while_writing_s"] is None else f"{x['step_while_writing_s']:.2f}"]
        for mode, x in ((mode, result[mode]) for mode in ("overlapped", "blocking"))
    ]
    heads = ["", "checkpoint, MB", "pause, s", "step, s", "step while a checkpoint is written, s"]
    return f"""
The table shows how long a checkpoint of a small model interrupts training on {result["machine"]["cores"]} CPU cores,
and
how much the steps slow down while it is written ([saving.json]({root}benchmarks/results/saving.json)):

{table(heads, rows)}
"""


def kills(root: str) -> str:
    """Return what happened to runs that were killed many times."""
    result = results("kills")
    partial = result["left_a_partial_one"]
    text = f"""
A run that saves a checkpoint every two steps was killed {result["kills"]} times: in half of the cases at a random
moment, in the other half while it wrote a checkpoint ([kills.json]({root}benchmarks/results/kills.json)).
After {"each" if partial == result["kills"] else partial} of the {result["kills"]} kills, the run folder contained a
partly written checkpoint, still under its temporary name. {result["damaged_under_a_steps_name"] or "No"} checkpoints
with a final name were damaged. The
run {how_often("resumed from a damaged checkpoint", result["resumed_from_a_damaged_one"])}.
"""
    if best := result.get("best"):
        wrong = best["best_not_the_lowest_loss"]
        exceptions = f", with {wrong} exceptions" if wrong else ""
        text += f"""
A run that validates after every step was killed {best["kills"]} times: in half of the cases at a random moment, in the
other half soon after a validation with a new lowest loss, while the checkpoint of this step was being saved.
{best["kills_before_the_best_was_saved"]} kills came before the weights with the lowest loss were saved. The best
checkpoint was {how_often("damaged", best["best_not_whole"])}. After every kill{exceptions}, it was the one with the
lowest loss among the steps that the run had validated and saved. The losses of all steps were taken from an identical
run that was never killed.
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
Each row of the table covers several rank counts. For each rank count, a ZeRO-2 run saved a checkpoint at step {at} and
continued for 20 steps. Each checkpoint was then resumed with every rank count of the row, under `zero1.json`,
`zero2.json` and `zero3.json`. The deviation of a resumed run is the largest difference between its 20 losses and those
of the run that saved the checkpoint, in nats per token. The table gives the median and the maximum of the deviations.

{table(["preset", "ranks", "device of each rank", "median", "maximum", "source"], rows)}
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
        "muon_long": "RWKV, Muon, rows of {ctx_len:,}",
        "transformer_long": "Transformer, AdamW, rows of {ctx_len:,}",
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
        "",
        "learning rate",
        "weight decay",
        "parameters",
        "seeds",
        "lowest validation loss",
        "at step",
        "tokens/s",
    ]
    return f"""
All models were trained for {settings["steps"]} steps of {settings["batch_size"]} x {settings["ctx_len"]:,} tokens on
chorales, masses and fiddle tunes ({gpu(result["machine"])},
[learning.json]({root}benchmarks/results/learning.json)). The RWKV models are `{settings["preset"]}`. The Transformer
has the same width and number of layers, with rotary position embeddings, SwiGLU, normalized queries and keys, dropout
0.1 and `torch.compile`. Two pairs (learning rate, weight decay) were tried for each: {grids["adamw"]} for AdamW;
{grids["muon"]} for Muon; {grids["transformer"]} for the Transformer. The table shows the better one. The lowest
validation loss of each run, in nats per token, is averaged over the seeds and given with its standard deviation:

{table(heads, rows)}

- Muon needs {steps["mean"]:.0%} of AdamW's steps ({steps["least"]:.0%} to {steps["most"]:.0%}, depending on the seed)
  and {seconds["mean"]:.0%} of its time to reach AdamW's lowest validation loss. After step
  {found["contestants"]["muon"]["best_step"]["mean"]:.0f}, the models trained with Muon overfit.
- A step with Muon takes longer, because it orthogonalizes matrices. The difference is largest for large models with few
  tokens per step. With {adamw["model"]["layers"]} layers x {adamw["model"]["width"]} and {one:,} tokens per step on one
  GPU, a step takes {muon["step_ms"]:.0f} ms instead of {adamw["step_ms"]:.0f} ms
  ([step_muon.json]({root}benchmarks/results/step_muon.json)). Several GPUs divide this work among them.

![Validation loss by steps and by seconds]({root}benchmarks/results/learning.png)
"""


def deepembed(root: str) -> str:
    """Return how fast the model learns without DeepEmbed and with two forms of it."""
    result, before = results("deepembed"), results("learning")["summary"]["contestants"]
    settings, found = result["settings"], result["summary"]["contestants"]
    differences = result["summary"]["differences"]
    names = {
        "x070": "none, `--channel_mix x070`",
        "x080": "a vector multiplies the output, `--channel_mix x080`",
        "gate32": "a matrix gates the hidden layer, not in the package",
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
    heads = ["DeepEmbed", "parameters", "lowest validation loss", "against x070", "against x080", "tokens/s"]
    rates = " and ".join(f"{lr:g}" for lr in sorted(lr for lr, *_ in result["grids"]["gate32"]))
    against = differences["gate32"]["x070"]
    slower = 1 - found["gate32"]["tokens_per_second"] / found["x070"]["tokens_per_second"]
    # What the text below says in words.
    assert differences["x080"]["x070"]["loss"] > differences["x080"]["x070"]["spread"]
    assert differences["gate32"]["x080"]["wins"] and -against["spread"] < against["loss"] < 0
    assert {x["lr"] for x in found.values()} == {max(lr for lr, *_ in result["grids"]["gate32"])}
    earlier = {key: before[key]["best_loss"] for key in ("x070", "muon")}
    assert abs(earlier["x070"]["mean"] - earlier["muon"]["mean"]) < min(x["deviation"] for x in earlier.values())
    assert all(earlier[a]["mean"] < found[b]["best_loss"]["mean"] for a, b in (("x070", "x070"), ("muon", "x080")))
    return f"""
The table compares forms of DeepEmbed on the dataset of the table above, with the same number and size of steps, Muon
and weight decay {settings["weight_decay"]:g} ({gpu(result["machine"])},
[deepembed.json]({root}benchmarks/results/deepembed.json)). The learning rates {rates} were tried for each form. The
higher one is better for all three. The losses, in nats per token, are averaged over {found["x070"]["seeds"]} seeds and
given with their standard deviation:

{table(heads, rows)}

- With these settings, x070 learns better than x080 by more than the spread of the seeds. With weight decay
  {before["muon"]["weight_decay"]:g}, which gives lower losses, there is no such difference in the table above
  ({with_spread(earlier["x070"])} and {with_spread(earlier["muon"])}).
- The gate of the hidden layer is BlinkDL's later form of DeepEmbed. Its advantage over x080 is larger than the spread
  of the seeds. Its advantage over x070 is within the spread. Without a kernel of its own, the gate processes
  {slower:.0%} fewer tokens/s than x070. The gate is therefore not a value of `--channel_mix`
  ([deepembed.py]({root}benchmarks/deepembed.py)). The gate was not measured with weight decay
  {before["muon"]["weight_decay"]:g}.

![Validation loss of the forms of DeepEmbed by steps and by seconds]({root}benchmarks/results/deepembed.png)
"""


def with_spread(statistic: dict[str, float]) -> str:
    """Return a mean with its standard deviation, without the latter for a single run."""
    deviation = statistic.get("deviation")
    return f"{statistic['mean']:.4f}" + (f" ± {deviation:.4f}" if deviation else "")


def zero(root: str) -> str:
    """Return memory and traffic under each DeepSpeed file."""
    return f"""
Each row of the table is for one number of parameters and one number of GPUs. The last column recommends a file. Each
node has {plan.GPUS_PER_NODE} GPUs with 80 GiB. The cells have the form A / B:

- A is the memory for weights, gradients and AdamW states, in GiB per GPU.
- B is what each GPU sends to other nodes in a step of one micro-batch, in GB.

The recommended file is the first of zero1, zero2 and zero3 that needs less than {plan.ROOM_GIB} GiB, because the rest
of the memory is needed for activations and buffers. If zeropp sends less to other nodes than zero3, zeropp is
recommended instead of zero3. [plan.py]({root}benchmarks/plan.py) computes A and B, and checks them against a two-rank
run ([plan.json]({root}benchmarks/results/plan.json)).

{plan.table()}
"""


BLOCKS: dict[str, Callable[[str], str]] = {
    block.__name__: block
    for block in (
        demo, summary, presets, losses, parts, holes, measures, step, kernels, fused, generation, play, prepare,
        scaling, tuning, saving, kills, resumption, learning, deepembed, zero,
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
