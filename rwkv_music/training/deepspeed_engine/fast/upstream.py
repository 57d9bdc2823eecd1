"""The functions of DeepSpeed that `fast` replaces or relies on, pinned by the hash of their source.

Everything in this package depends on the implementation of these functions, not only on their signatures. If `--fast`
is `auto`, the package is used only if the installed DeepSpeed is the tested version and each of these functions has the
recorded hash. Otherwise training runs on DeepSpeed's own code paths.

After you have checked the package against a new version of DeepSpeed, print the new hashes with

    python -m rwkv_music.training.deepspeed_engine.fast.upstream
"""

import ast
import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import deepspeed

TESTED_VERSION = "0.19.8"

STAGE_1_2 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
STAGE_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"
PARAMETERS = "deepspeed.runtime.zero.partition_parameters"
COORDINATOR = "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator"


@dataclass(frozen=True)
class Patch:
    """A replacement of DeepSpeed's code.

    Attributes:
        module: the module of this package that contains the replacement.
        why: the fault of DeepSpeed's own code, or the reason why it is slow.
        retired_by: the change in DeepSpeed that would make the replacement unnecessary.
        functions: source hash (SHA-256) of each function that is replaced or relied on, by "module:qualified name".
    """

    module: str
    why: str
    retired_by: str
    functions: dict[str, str]


PATCHES = (
    Patch(
        "update",
        "DeepSpeed's step checks overflow tensor by tensor and waits for the device once per parameter group",
        "an optimizer step whose norm, clipping and overflow check stay on the device",
        {
            f"{STAGE_1_2}.step": "fac1cee02b7caa95",
            f"{STAGE_1_2}.free_grad_in_param_list": "eaa2bb13015c38a4",
            f"{STAGE_3}.step": "d7e1bfe84220c235",
            f"{STAGE_3}._pre_step": "691a45ebaea01647",
            f"{STAGE_3}._partition_all_parameters": "525c259b908965ab",
            f"{STAGE_3}._post_step": "c68d3d6c64060616",
            f"{STAGE_3}.invalidate_secondary_tensor": "35171c823d33a4fa",
            "deepspeed.runtime.utils:all_gather_dp_groups": "476fa614825219d8",
        },
    ),
    Patch(
        "overlap",
        "with overlap_comm a gradient larger than a bucket is reduced in memory that may already be reused, and the "
        "host waits for the whole device at the end of backward",
        "record_stream on such gradients, and stream waits instead of device synchronization",
        {
            f"{STAGE_1_2}.average_tensor": "da26b2ba0a2f8609",
            f"{STAGE_1_2}.reduce_ipg_grads": "b52c7b10e5c18896",
            f"{STAGE_1_2}.independent_gradient_partition_epilogue": "57310018906ee18f",
            f"{STAGE_1_2}._clear_previous_reduced_grads": "09d0670c65d9b363",
            f"{STAGE_3}.independent_gradient_partition_epilogue": "25dbde8cb4d624c6",
        },
    ),
    Patch(
        "gather",
        "a single rank waits for the device although it gathers nothing, and at most two gathered tensors may be in "
        "flight, although gathering all blocks at once needs more",
        "no synchronization in NoGatherCoalescedHandle.wait, and a configurable number of tensors in flight",
        {
            f"{PARAMETERS}:_no_gather_coalesced": "4359a7aa62e14ce8",
            f"{PARAMETERS}:NoGatherCoalescedHandle.wait": "31c3e04ffab9e8ee",
            f"{COORDINATOR}._fetch_sub_module_impl": "939c091cea2deb73",
        },
    ),
    Patch(
        "zero3_flat_params",
        "ZeRO-3 gathers and partitions each of a block's 34 tensors separately",
        "gathering a leaf module's parameters as one tensor",
        {
            f"{COORDINATOR}.fetch_sub_module": "4eb39865022e72c8",
            f"{COORDINATOR}.release_sub_module": "23a6211bd4bb6583",
            f"{PARAMETERS}:Init._convert_to_deepspeed_param": "1c639977bd9a9268",
        },
    ),
    Patch(
        "flat_params",
        "ZeRO-1 and 2 do a fixed amount of host work per parameter tensor in backward and in the step",
        "per-group instead of per-tensor hooks, norms and overflow checks",
        {f"{STAGE_1_2}.reduce_independent_p_g_buckets_and_remove_grads": "08d7c4942fcfce21"},
    ),
    Patch(
        "start",
        "DeepSpeed's Muon is decorated with torch.compile, whose import takes seconds",
        "no torch.compile at the import of original_muon",
        {"deepspeed.runtime.compiler:compile": "a7ffdbcaa4b587fa"},
    ),
)


def mismatch() -> str | None:
    """Return, as a clause, why `fast` cannot be used with the installed DeepSpeed; None if it can."""
    if deepspeed.__version__.split("+")[0] != TESTED_VERSION:
        return f"DeepSpeed {deepspeed.__version__} is not the tested version {TESTED_VERSION}"
    for patch in PATCHES:
        for name, recorded in patch.functions.items():
            if source_hash(name) != recorded:
                return f"{name.partition(':')[2]} of DeepSpeed {deepspeed.__version__} is not the tested code"
    return None


def source_hash(name: str) -> str | None:
    """Return the first 16 digits of the SHA-256 of a function's source; None if the function does not exist.

    The source is read from the module's file, because DeepSpeed's decorators hide it from `inspect`.

    Args:
        name: "module:qualified name".
    """
    module, _, path = name.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    node, lines = _parse(Path(spec.origin))
    for part in path.split("."):
        node = next((child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == part), None)
        if node is None:
            return None
    return hashlib.sha256("\n".join(lines[node.lineno - 1 : node.end_lineno]).encode()).hexdigest()[:16]


@cache
def _parse(path: Path) -> tuple[ast.Module, list[str]]:
    source = path.read_text(encoding="utf-8")
    return ast.parse(source), source.splitlines()


if __name__ == "__main__":
    print(f"DeepSpeed {deepspeed.__version__}")
    for patch in PATCHES:
        for function in patch.functions:
            print(f"{source_hash(function)}  {function}")
