"""Compute which DeepSpeed file suits which model on how many GPUs: memory and traffic from formulas.

    python benchmarks/plan.py            # print the table, in Markdown
    python benchmarks/plan.py --check    # compare with what two CPU ranks send; writes results/plan.json

With P parameters on N GPUs, bf16 training needs per parameter 2 bytes for the weight, 2 for the gradient and 12 for
AdamW's states (fp32 master weight, two moments). ZeRO-1 partitions the 12, ZeRO-2 also the gradients, ZeRO-3 everything
(arXiv 1910.02054). hpZ keeps one more copy of the weights per node (arXiv 2306.10209). Not included are activations and
DeepSpeed's buckets, which take 2 bytes x reduce_bucket_size, or twice that with overlap_comm.

With ring collectives, a GPU sends (N - 1) / N of each tensor that is gathered or scattered, and twice as much of a
tensor that is all-reduced. The following figures are for a step of one micro-batch:
- Under ZeRO-1 and ZeRO-2, DeepSpeed 0.19 all-reduces the gradient, although the papers scatter it, and gathers the
  weights after the update. This is 6 bytes per parameter.
- ZeRO-3 gathers the weights for forward and again for backward, and scatters the gradient. This is also 6 bytes per
  parameter, but 4 if the model fits into stage3_max_live_parameters (1e9), because it then stays gathered.
Each further micro-batch adds the reduction of the gradient under ZeRO-2, and all of this traffic under ZeRO-3.

A second table lists the bytes that a GPU receives from the other GPUs of its group with --context_parallel. They are
per micro-batch, whatever its length, and depend on the width of the model but not on its number of parameters
(`rwkv_music/ops/context_parallel.py`)."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ranks import PROJECT, on_ranks

MAX_LIVE = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
MODELS = {"0.1B": 0.1e9, "1.3B": 1.3e9, "7B": 7e9, "14B": 14e9}
GPUS = (8, 64, 256, 1024)
GPUS_PER_NODE = 8
SHARING = (2, 4, 8)  # GPUs that share the rows of a micro-batch
ROOM_GIB = 40  # of a GPU's 80 or more; the rest is for activations and buckets


@dataclass(frozen=True)
class Plan:
    """The bytes that one GPU holds during training, holds on the host, and sends in a step."""

    gpu: float
    host: float
    sent: float  # over any link
    sent_between_nodes: float  # part of `sent`; less with the file's hierarchical collectives


def plan(file: dict, parameters: float, gpus: int, gpus_per_node: int = GPUS_PER_NODE) -> Plan:
    """Apply the formulas above to a DeepSpeed file."""
    zero = file["zero_optimization"]
    stage, P, share = zero["stage"], parameters, (gpus - 1) / gpus
    hierarchical = zero.get("zero_hpz_partition_size", 1) > 1
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") == "cpu"
    weights = 2 * P / (gpus if stage == 3 else 1) + (2 * P / min(gpus_per_node, gpus) if hierarchical else 0)
    gradients = 2 * P / (gpus if stage >= 2 else 1)
    states = 12 * P / gpus
    if offloaded:  # the host also keeps the gradients, in fp32
        memory = (weights if stage == 3 else weights + 2 * P / gpus, states + 4 * P / gpus)
    else:
        memory = (weights + gradients + states, 0)
    if stage < 3:
        sent = share * (2 * 2 * P + 2 * P)
        return Plan(*memory, sent, sent if gpus > gpus_per_node else 0)
    gathers = 1 if P <= MAX_LIVE else 2
    weight_bytes = 1 if zero.get("zero_quantized_weights") else 2
    gradient_bytes = 0.5 if zero.get("zero_quantized_gradients") else 2
    gather, scatter = share * weight_bytes * P, share * gradient_bytes * P
    within = 2 * P * (1 - 1 / min(gpus_per_node, gpus)) if hierarchical else gather
    sent = gather + (gathers - 1) * within + scatter
    between = gather + scatter + (0 if hierarchical else (gathers - 1) * gather)
    return Plan(*memory, sent, between if gpus > gpus_per_node else 0)


def files() -> dict[str, dict]:
    """Return the files in ds_configs/ by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((PROJECT / "ds_configs").glob("*.json"))}


def table() -> str:
    """Return the table in Markdown: memory and traffic per GPU for each model, number of GPUs and file."""
    names = ["zero1", "zero2", "zero3", "zeropp", "zero2_offload", "zero3_offload"]
    lines = ["| parameters | GPUs | " + " | ".join(names) + " | recommended |", "|---" * (len(names) + 3) + "|"]
    for model, parameters in MODELS.items():
        for gpus in GPUS:
            plans = {name: plan(files()[name], parameters, gpus) for name in names}
            cells = [f"{p.gpu / 2**30:.1f} / {p.sent_between_nodes / 1e9:.1f}" for p in plans.values()]
            lines.append(f"| {model} | {gpus:,} | " + " | ".join(cells) + f" | {choice(plans)} |")
    return "\n".join(lines)


def context_table() -> str:
    """Return in Markdown the MB that a GPU receives per micro-batch with --context_parallel, by preset and N."""
    from rwkv_music.config import PRESETS, ModelConfig
    from rwkv_music.ops.context_parallel import exchanged_bytes

    lines = ["| preset | " + " | ".join(f"N = {n}" for n in SHARING) + " |", "|---" * (len(SHARING) + 1) + "|"]
    for name, shape in PRESETS.items():
        model = ModelConfig(**shape)
        received = (model.n_layer * exchanged_bytes(n, model.n_embd, model.head_size, 2) for n in SHARING)
        lines.append(f"| {name} | " + " | ".join(f"{x / 1e6:,.0f}" for x in received) + " |")
    return "\n".join(lines)


def choice(plans: dict[str, Plan]) -> str:
    """Return the simplest file that leaves room for activations; zeropp if it needs less traffic than zero3."""
    for name in ("zero1", "zero2"):
        if plans[name].gpu < ROOM_GIB * 2**30:
            return name
    best = "zeropp" if plans["zeropp"].sent_between_nodes < plans["zero3"].sent_between_nodes else "zero3"
    return best if plans[best].gpu < ROOM_GIB * 2**30 else "zero3_offload"


# ---- the check -------------------------------------------------------------------------------------------------------

SMALL = "--n_layer 2 --n_embd 64 --ctx_len 128 --batch_size 4 --steps 4 --val_every 0 --save_every 0".split()
COUNTED_STEP = 3  # counted from 0; buffers and prefetching have settled
# For each collective: the argument with the whole tensor, its position, and how often a ring sends it.
COLLECTIVES = {
    "all_reduce": ("tensor", 0, 2),
    "all_gather_into_tensor": ("output_tensor", 0, 1),
    "reduce_scatter_tensor": ("input", 1, 1),
}


def variants() -> dict[str, dict]:
    """Return the shipped files as two CPU ranks can run them: ZeRO-3 keeps no weight gathered between uses."""
    found = {}
    for name, file in files().items():
        zero = dict(file["zero_optimization"])
        if zero["stage"] == 3:
            zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
            zero["stage3_max_reuse_distance"] = 0
        if zero.get("zero_hpz_partition_size"):  # quantization needs a GPU
            zero |= {"zero_hpz_partition_size": 2, "zero_quantized_weights": False, "zero_quantized_gradients": False}
        found[name] = {**file, "zero_optimization": zero}
    return found


def check() -> dict[str, dict]:
    """Return the computed and the counted bytes for each file. Raises AssertionError if they differ by more than 2%."""
    from rwkv_music.prepare.corpus import write_corpus
    from rwkv_music.prepare.pipeline import prepare

    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        write_corpus("bach", here / "midi", workers=1, limit=12)
        prepare([here / "midi"], here / "data", workers=1)
        for name, file in variants().items():
            (here / f"{name}.json").write_text(json.dumps(file))
            files = ["--data", here / "data", "--out", here / name, "--deepspeed_config", here / f"{name}.json"]
            line, environment = on_ranks(
                2, __file__, "--rank", *files, *SMALL, OMP_NUM_THREADS=1, CUDA_VISIBLE_DEVICES=""
            )
            subprocess.run(line, check=True, env=environment, stdout=subprocess.DEVNULL)
            counted = json.loads((here / name / "counted.json").read_text())
            sent = counted["sent_bytes"]
            P = counted["parameters"]
            formula = plan(file, P * MAX_LIVE, 2, 2).sent / MAX_LIVE  # as for a model too large to stay gathered
            states = counted["optimizer_bytes"] / P
            rows[name] = {"sent": sent / P, "sent_by_formula": formula / P, "optimizer": states}
            print(
                f"{name:<14} sends {sent / P:.3f} bytes per parameter (formula: {formula / P:.3f}); states {states:.2f}"
            )
            assert abs(sent - formula) < 0.02 * formula and abs(states - 12 / 2) < 0.1, name
    return rows


def count_as_a_rank(arguments: list[str]) -> int:
    """Run train.py and count the bytes its collectives send; rank 0 writes them to the run folder."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    sent: Counter[str] = Counter()

    def counted(name: str, argument: str, place: int, times: int):
        collective = getattr(dist, name)

        def call(*args, **kwargs):
            tensor = args[place] if len(args) > place else kwargs[argument]
            sent[name] += times * tensor.numel() * tensor.element_size() * (dist.get_world_size() - 1)
            return collective(*args, **kwargs)

        return call

    for name, (argument, place, times) in COLLECTIVES.items():
        call = counted(name, argument, place, times)
        setattr(dist, name, call)
        setattr(distributed_c10d, name, call)
    import train
    from rwkv_music.training.loop import Loop

    undisturbed = Loop.step

    def step(loop: Loop, *args):
        sent.clear()
        losses = undisturbed(loop, *args)
        if loop.context.rank == 0 and loop.progress.step == COUNTED_STEP:
            figures = {
                "sent_bytes": sum(sent.values()) / dist.get_world_size(),
                "parameters": loop.context.size.parameters,
                "optimizer_bytes": loop.engine.optimizer_bytes(),
            }
            (loop.context.folder / "counted.json").write_text(json.dumps(figures))
        return losses

    Loop.step = step
    return train.main(arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with two CPU ranks; writes results/plan.json")
    options = parser.parse_args()
    if options.check:
        import report

        report.write("plan", {"bytes_a_parameter_at_two_ranks": check()})
    print(f"GiB per GPU (weights, gradients, AdamW) / GB that a GPU sends between nodes of {GPUS_PER_NODE} per step:\n")
    print(table())
    print("\nMB that a GPU receives per micro-batch with --context_parallel N, not counting repeated forward passes:\n")
    print(context_table())
    return 0


if __name__ == "__main__":
    sys.exit(count_as_a_rank(sys.argv[2:]) if sys.argv[1:2] == ["--rank"] else main())
