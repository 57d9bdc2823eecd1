"""Write the README's figures from results/, so that none is typed by hand.

python benchmarks/readme.py
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import plan
import report

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- {} figures: benchmarks/readme.py -->", "<!-- end of figures -->"


def results(name: str) -> dict:
    return json.loads((report.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def demo() -> str:
    """What `make demo` gives, in Markdown."""
    demo = results("demo")
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
| a {val["ngram"]:.0f}-gram model of the same tokens | {val["ngram_nats_per_token"]:.3f} | |
| a bigram model | {val["bigram_nats_per_token"]:.3f} | |
| a unigram model | {val["unigram_nats_per_token"]:.3f} | |

![Losses over the steps, far below the bigram model's]({images}/curve.png)

One of its completions, {completions[0]}: four bars of Bach, then the model
([listen]({images}/{completions[0]}.mid), and the others beside it):

![Piano roll of four given and eight completed bars]({images}/{completions[0]}.png)
"""


def corpus() -> str:
    """A preset on music21's whole corpus, in Markdown."""
    made = results("corpus")
    val, gpu = made["evaluation"]["val"], made["machine"]["gpu"]
    counts = made["data"]["splits"]["train"]
    rows, ctx_len = made["batch"]
    best = min(made["curves"]["val/loss"], key=lambda point: point[1])
    columns = list(next(iter(made["measures"].values())))
    measures = "\n".join(
        f"| {name} | " + " | ".join(cells[column] for column in columns) + " |"
        for name, cells in made["measures"].items()
    )
    images = "benchmarks/results/corpus"
    completions = sorted(path.stem for path in (report.RESULTS / "corpus").glob("*.mid"))
    rolls = "\n\n".join(
        f"{name} ([listen]({images}/{name}.mid)):\n\n![Piano roll of {name}]({images}/{name}.png)"
        for name in completions
    )
    bits = {
        kind: val[f"{kind}nats_per_token"] * val["bits_per_note"] / val["nats_per_token"]
        for kind in ("", "ngram_", "bigram_", "unigram_")
    }
    return f"""
The `0.1b` preset on music21's corpus ({counts["pieces"]:,} pieces to learn from, {counts["tokens"]:,} tokens), for
{made["minutes"]:.1f} minutes on one {gpu}: {made["steps"]:,} steps of {rows} x {ctx_len} tokens,
`{" ".join(made["options"])}`. On the pieces held out:

| | nats a token | bits a note |
|---|---|---|
| the trained model (12 x 768) | {val["nats_per_token"]:.3f} | {bits[""]:.2f} |
| a {val["ngram"]:.0f}-gram model of the same tokens | {val["ngram_nats_per_token"]:.3f} | {bits["ngram_"]:.2f} |
| a bigram model | {val["bigram_nats_per_token"]:.3f} | {bits["bigram_"]:.2f} |
| a unigram model | {val["unigram_nats_per_token"]:.3f} | {bits["unigram_"]:.2f} |

![Losses over the steps]({images}/curve.png)

For so much music it was too long: validation was best at step {best[0]:,}, {best[1]:.3f} nats a token.

Eight bars after four given ones, in the real pieces and in its completions (mean +- deviation over the pieces):

| | {" | ".join(columns)} |
|---|---|---|
{measures}

Three completions of held-out pieces, four bars given and eight completed:

{rolls}
"""


def speed() -> str:
    """A training step on one GPU and on several, the operator and generation on one GPU, and generation on a CPU."""
    h100, h200, kernels = results("step_h100"), results("step_h200"), results("wkv7s_gpu")
    play, cpu = results("generation_cuda_speed")["speed"], results("generation_cpu_speed")["speed"]
    lines = []
    for name, row in h100["rows"].items():
        cells = [f"{x['tokens_per_second']:,.0f} | {x['mfu']:.0%}" for x in (h200["rows"][name], row)]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['peak_gib']:.1f} |")
    kernels_on = kernels["machine"]["gpu"].removeprefix("NVIDIA ")
    commits = [one["machine"]["commit"] for one in (h200, h100)]
    one, many = (play[pieces]["tokens_per_second"] for pieces in ("1", "512"))
    ratios = [row["faster_than"][name] for row in kernels["rows"] for name in row["faster_than"]]
    return f"""
Tokens a second on one GPU, DeepSpeed ZeRO-2, bf16, a vocabulary of 20,096, no recomputation (the H200's at commit
{commits[0]}, the H100's at {commits[1]}):

| layers and width, rows x tokens | H200 | MFU | H100 | MFU | its peak GiB |
|---|---|---|---|---|---|
{chr(10).join(lines)}

MFU is 6 x matrix parameters x tokens a second over the chips' 989 TFLOP/s
([step_h200.json](benchmarks/results/step_h200.json), [step_h100.json](benchmarks/results/step_h100.json)).

{scaling()}

Forward and backward, our WKV7s kernels take 1/{min(ratios):.1f} to 1/{max(ratios):.1f} of the time of
flash-linear-attention's on an {kernels_on}, in one run with them ([wkv7s_gpu.json](benchmarks/results/wkv7s_gpu.json)).
Completing pieces, `0.1b` draws {one:,.0f} tokens a second for one and {many:,.0f} for 512 at once there,
{cpu["1"]["tokens_per_second"]:.0f} for one on two CPU cores.
"""


def scaling() -> str:
    """What several GPUs make of it."""
    made = results("scaling")
    rows = {(row["preset"], row["file"], row["scaling"], row["gpus"]): row for row in made["rows"]}
    counts = sorted({row["gpus"] for row in made["rows"]} - {1})
    files = sorted({row["file"] for row in made["rows"]})
    columns = [(scaling, gpus) for scaling in ("weak", "strong") for gpus in counts]
    heads = [f"{'same batch a GPU' if scaling == 'weak' else 'same batch in all'}, {gpus}" for scaling, gpus in columns]
    card = made["machine"]["gpu"].removeprefix("NVIDIA ").split()[0]
    lines = []
    for preset in ("0.1b", "1.5b"):
        for file in files:
            times = [
                f"{rows[row]['times_one_gpu']:.2f}" if (row := (preset, file, *column)) in rows else "not measured"
                for column in columns
            ]
            held = [rows[preset, file, "weak", gpus]["optimizer_bytes"] / 1e9 for gpus in (1, *counts)]
            one = f"{rows[preset, file, 'weak', 1]['tokens_per_second']:,.0f}"
            lines.append(f"| {preset} | {file} | {one} | {' | '.join(times)} | {', '.join(f'{x:.1f}' for x in held)} |")
    whole = rows["7b", "zero2", "weak", counts[-1]]
    return f"""{counts[-1]} {card}s of one host, and fewer, make so many times the tokens a second of one under
the same file ([scaling.json](benchmarks/results/scaling.json), at commit {made["machine"]["commit"]}):

| | | one GPU | {" | ".join(heads)} | optimizer GB a GPU: {", ".join(map(str, (1, *counts)))} |
|{"---|" * (len(columns) + 4)}
{chr(10).join(lines)}

![Speed, communication and memory over the number of GPUs](benchmarks/results/scaling.png)

A 7B ({whole["batch"][0]} x {whole["batch"][1]} tokens, ZeRO-2) makes {whole["tokens_per_second"]:,.0f} tokens a second
on {counts[-1]} of them: {whole["mfu"]:.0%} MFU, {whole["peak_gib"]:.0f} GiB a GPU, for which `--recompute auto` takes
`{whole["recompute"]}`."""


def tuning() -> str:
    """What a tuned state learns of a composer, beside full fine-tuning."""
    result = results("tuning")
    best = {
        tune: min((row for row in result["tuned"] if row["tune"] == tune), key=lambda row: row["val_loss"])
        for tune in ("all", "state")
    }
    return f"""
A base of {best["all"]["parameters"]:,} parameters that never saw Palestrina gives his held-out movements
{result["untuned_val_loss"]:.3f} nats a token. {result["steps"]} steps of full fine-tuning bring that to
{best["all"]["val_loss"]:.3f}; as many on a state alone, {best["state"]["share"]:.2%} of the parameters, to
{best["state"]["val_loss"]:.3f}: {result["state_over_all"]:.0%} of the way, each at the best of three learning rates
([benchmarks/tuning.py](benchmarks/tuning.py)).
"""


def resumption() -> str:
    """How far a run that resumes elsewhere gets from its course."""
    lines = []
    for name in ("resumption_cpu", "resumption_h100", "resumption_h200"):
        made = results(name)
        arguments, machine = made["arguments"], made["machine"]
        largest = [row["largest"] for row in made["rows"]]
        lines.append(
            f"| {arguments['preset']} | {', '.join(map(str, arguments['ranks']))} x {machine.get('gpu', 'CPU')} "
            f"| {statistics.median(largest):.1e} | {max(largest):.1e} | [{name}.json](benchmarks/results/{name}.json) |"
        )
    at = results("resumption_cpu")["arguments"]["at"]
    return f"""
On each number of ranks a run was saved at step {at} under ZeRO-2, and resumed on each number of ranks under ZeRO-1, 2
and 3, with the files of ds_configs. How far the next 20 losses lie from those of the unbroken run, in nats a token; the
furthest of each resumption's:

| preset | ranks | median | largest | |
|---|---|---|---|---|
{chr(10).join(lines)}
"""


def files() -> str:
    """Memory and traffic under each DeepSpeed file."""
    return f"""
GiB a GPU for weights, gradients and AdamW / GB that a GPU sends between nodes of {plan.GPUS_A_NODE} in a step, by
formula ([benchmarks/plan.py](benchmarks/plan.py) says which, and checks them at two ranks):

{plan.table().strip()}
"""


BLOCKS: dict[str, Callable[[], str]] = {
    "demo": demo,
    "corpus": corpus,
    "speed": speed,
    "plan": files,
    "tuning": tuning,
    "resumption": resumption,
}


def with_figures(text: str) -> str:
    """`text` with what stands between each pair of marks made anew."""
    for name, block in BLOCKS.items():
        before, rest = text.split(BEGIN.format(name))
        after = rest.split(END, maxsplit=1)[1]
        text = before + BEGIN.format(name) + "\n" + block() + "\n" + END + after
    return text


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text(encoding="utf-8")), encoding="utf-8")
