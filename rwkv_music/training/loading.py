"""Load a checkpoint into the engine, on any number of ranks and under any ZeRO stage. `saving` writes checkpoints.

Each rank reads only the slices of master weights and optimizer states that it will hold.
"""

from pathlib import Path

import deepspeed
import torch
from torch import distributed as dist

from rwkv_music.checkpoint.run_folder import STREAMS_PREFIX, contents_fault, tensor_files
from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile
from rwkv_music.checkpoint.saved_tensors import SavedTensors, damage_as_user_error
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.deepspeed_engine import zero_shards
from rwkv_music.training.tbptt import StreamStates


def damaged_files(checkpoint: Path) -> str | None:
    """`contents_fault` of the tensors of a checkpoint, shared out among the ranks; the same answer on all."""
    mine = tensor_files(checkpoint)[dist.get_rank() :: dist.get_world_size()]
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, contents_fault(checkpoint, mine))
    return next((found for found in faults if found), None)


def load_checkpoint(engine: deepspeed.DeepSpeedEngine, checkpoint: Path, streams: StreamStates | None = None) -> None:
    """Restore weights and optimizer from `checkpoint`; every rank calls it and reads what it will hold, no more.

    The states of `streams` too, whichever ranks had them.

    Raises UserError, on all ranks the same, if it is damaged or of another model.
    """

    def read() -> None:
        with damage_as_user_error(checkpoint):
            saved = SavedTensors(checkpoint)
            masters = zero_shards.master_partitions(engine)
            for piece in zero_shards.pieces(engine):
                if saved.shapes.get(piece.name) != piece.shape:
                    raise DamagedFile(f"{piece.name} is not in it, or of another shape than {piece.shape}")
                master = masters[piece.partition]
                state = zero_shards.optimizer_state(engine, master)
                for flat, moment in ((master, None), *((state[moment], moment) for moment in zero_shards.MOMENTS)):
                    saved.read_into(piece.of(flat).view(-1), piece.name, piece.start, moment)
            zero_shards.set_optimizer_steps(engine, saved.optimizer_steps)
            if streams is not None:
                _load_lanes(checkpoint, streams)

    raise_on_any_rank(f"reading {checkpoint}", read)
    zero_shards.weights_from_masters(engine)


def _load_lanes(checkpoint: Path, streams: StreamStates) -> None:
    files = [TensorFile(checkpoint / name) for name in tensor_files(checkpoint) if name.startswith(STREAMS_PREFIX)]
    for name, x in streams.tensors().items():
        file = next((file for file in files if file.shapes.get(name) == tuple(x.shape)), None)
        if file is None:
            raise DamagedFile(f"no file holds the carried state {name} as {tuple(x.shape)}")
        values = torch.empty(x.numel())
        file.read_into(values, name)
        x.copy_(values.view(x.shape))
