"""Which DeepSpeed file for which model on how many GPUs? Memory and traffic from formulas, checked at two ranks.

    python benchmarks/plan.py            # the table, in Markdown
    python benchmarks/plan.py --check    # counts what two CPU ranks send under each file; writes results/plan.json

With P parameters on N GPUs a GPU holds in bf16 training 2 bytes a weight, 2 a gradient and 12 of AdamW's states (fp32
master weight, two moments). ZeRO-1 shares out the 12, ZeRO-2 the gradients too, ZeRO-3 all (arXiv 1910.02054); hpZ
keeps one more copy of the weights a node (arXiv 2306.10209). Activations come on top, and DeepSpeed's buckets: 2 bytes
x reduce_bucket_size, twice with overlap_comm.

A GPU sends (N - 1) / N of each gathered or scattered tensor, and twice that of a summed one (rings). DeepSpeed 0.19
sums the gradient under ZeRO-1 and under ZeRO-2, where the papers scatter it, and gathers the weights after the update:
6 bytes a parameter. ZeRO-3 gathers the weights for forward and again for backward, and scatters the gradient: 6 as
well, or 4 while the model fits into stage3_max_live_parameters (1e9) and is not let go of in between. All is for a step
of one micro-batch: under ZeRO-2 each further one adds the sum of the gradient, under ZeRO-3 everything.
"""

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
ROOM_GIB = 40  # of 80 or more; the rest is for activations and buckets


@dataclass(frozen=True)
class Plan:
    """What a file asks of one GPU, in bytes: held all the time, on the host, and sent in a step."""

    gpu: float
    host: float
    sent: float  # over any link
    sent_between_nodes: float  # of it, by hierarchical collectives where the file has them


def plan(file: dict, parameters: float, gpus: int, gpus_per_node: int = GPUS_PER_NODE) -> Plan:
    """The formulas above for a DeepSpeed file."""
    zero = file["zero_optimization"]
    stage, P, share = zero["stage"], parameters, (gpus - 1) / gpus
    hierarchical = zero.get("zero_hpz_partition_size", 1) > 1
    offloaded = zero.get("offload_optimizer", {}).get("device", "none") == "cpu"
    weights = 2 * P / (gpus if stage == 3 else 1) + (2 * P / min(gpus_per_node, gpus) if hierarchical else 0)
    gradients = 2 * P / (gpus if stage >= 2 else 1)
    states = 12 * P / gpus
    if offloaded:  # the gradients are kept there too, in fp32
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
    """The files that we ship, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((PROJECT / "ds_configs").glob("*.json"))}


def table() -> str:
    """Memory a GPU and bytes sent between nodes in a step, for each model, number of GPUs and file; in Markdown."""
    names = [name for name in ("zero1", "zero2", "zero3", "zeropp", "zero2_offload", "zero3_offload")]
    lines = ["| model | GPUs | " + " | ".join(names) + " | take |", "|---" * (len(names) + 3) + "|"]
    for model, parameters in MODELS.items():
        for gpus in GPUS:
            plans = {name: plan(files()[name], parameters, gpus) for name in names}
            cells = [f"{p.gpu / 2**30:.1f} / {p.sent_between_nodes / 1e9:.1f}" for p in plans.values()]
            lines.append(f"| {model} | {gpus:,} | " + " | ".join(cells) + f" | {choice(plans)} |")
    return "\n".join(lines)


def choice(plans: dict[str, Plan]) -> str:
    """The plainest file that leaves room for activations; hierarchical ZeRO-3 where it spares the network."""
    for name in ("zero1", "zero2"):
        if plans[name].gpu < ROOM_GIB * 2**30:
            return name
    best = "zeropp" if plans["zeropp"].sent_between_nodes < plans["zero3"].sent_between_nodes else "zero3"
    return best if plans[best].gpu < ROOM_GIB * 2**30 else "zero3_offload"


# ---- the check -------------------------------------------------------------------------------------------------------

SMALL = "--n_layer 2 --n_embd 64 --ctx_len 128 --batch_size 4 --steps 4 --val_every 0 --save_every 0".split()
COUNTED_STEP = 3  # from 0: buffers and prefetching have settled
# Collectives: the argument that is the whole tensor, its place, and how often a ring sends it.
COLLECTIVES = {
    "all_reduce": ("tensor", 0, 2),
    "all_gather_into_tensor": ("output_tensor", 0, 1),
    "reduce_scatter_tensor": ("input", 1, 1),
}


def variants() -> dict[str, dict]:
    """The shipped files as two CPU ranks can run them: no weight is small enough to stay, none lives on to backward."""
    found = {}
    for name, file in files().items():
        zero = dict(file["zero_optimization"])
        if zero["stage"] == 3:
            zero |= {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
            zero["stage3_max_reuse_distance"] = 0
        if zero.get("zero_hpz_partition_size"):  # its quantisation takes a GPU's kernels
            zero |= {"zero_hpz_partition_size": 2, "zero_quantized_weights": False, "zero_quantized_gradients": False}
        found[name] = {**file, "zero_optimization": zero}
    return found


def check() -> dict[str, dict]:
    """Formula and count for each file; raises AssertionError where they are more than 2% apart."""
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
            formula = plan(file, P * MAX_LIVE, 2, 2).sent / MAX_LIVE  # as of a model that is too large to live on
            states = counted["optimizer_bytes"] / P
            rows[name] = {"sent": sent / P, "sent_by_formula": formula / P, "optimizer": states}
            print(
                f"{name:<14} sends {sent / P:.3f} bytes a parameter, by formula {formula / P:.3f}; states {states:.2f}"
            )
            assert abs(sent - formula) < 0.02 * formula and abs(states - 12 / 2) < 0.1, name
    return rows


def count_as_a_rank(arguments: list[str]) -> int:
    """`train.py` with its collectives counted; rank 0 leaves the figures in the run folder."""
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
    from rwkv_music.training.deepspeed_engine.engine import optimizer_bytes
    from rwkv_music.training.loop import Trainer

    undisturbed = Trainer.step

    def step(trainer: Trainer, *args):
        sent.clear()
        losses = undisturbed(trainer, *args)
        if trainer.first and trainer.progress.step == COUNTED_STEP:
            figures = {
                "sent_bytes": sum(sent.values()) / dist.get_world_size(),
                "parameters": trainer.parameters,
                "optimizer_bytes": optimizer_bytes(trainer.engine),
            }
            (trainer.folder / "counted.json").write_text(json.dumps(figures))
        return losses

    Trainer.step = step
    return train.main(arguments)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="count at two ranks and compare; writes results/plan.json")
    options = parser.parse_args()
    if options.check:
        import report

        report.write("plan", {"bytes_a_parameter_at_two_ranks": check()})
    print(f"GiB a GPU for weights, gradients and AdamW / GB sent a GPU between nodes of {GPUS_PER_NODE} in a step:\n")
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(count_as_a_rank(sys.argv[2:]) if sys.argv[1:2] == ["--rank"] else main())
