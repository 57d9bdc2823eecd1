"""Load a checkpoint or initial weights into the engine, on any number of ranks and under any ZeRO stage.

Each rank reads only the slices of the fp32 master weights and optimizer states that it will hold. A checkpoint does not
contain the weights that the model computes with, because they are the rounded master weights.
"""

from pathlib import Path

import torch
from torch import distributed as dist

from rwkv_music.checkpoint.run_folder import STREAMS_PREFIX, contents_fault, tensor_files
from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile
from rwkv_music.checkpoint.saved_tensors import SavedTensors, damage_as_user_error
from rwkv_music.checkpoint.tuning import Base
from rwkv_music.errors import SharedError
from rwkv_music.training.consensus import raise_on_any_rank
from rwkv_music.training.deepspeed_engine.engine import Engine
from rwkv_music.training.init_weights import InitialWeights
from rwkv_music.training.tbptt import StreamStates


def damaged_files(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's tensor files, or None. Collective: each rank hashes a part."""

    def check_own() -> str | None:
        try:
            own = tensor_files(checkpoint)[dist.get_rank() :: dist.get_world_size()]
            return contents_fault(checkpoint, own)
        except ValueError as error:  # the manifest is damaged
            return str(error)

    own_fault = raise_on_any_rank(f"reading {checkpoint}", check_own)
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, own_fault)
    return next((fault for fault in faults if fault), None)


def load_checkpoint(engine: Engine, checkpoint: Path, stream_states: StreamStates | None = None) -> None:
    """Restore weights, optimizer states and `stream_states` from a checkpoint. Collective.

    Raises UserError on all ranks if a file is damaged.
    """
    shards = engine.shards

    def read() -> None:
        with damage_as_user_error(checkpoint):
            saved = SavedTensors(checkpoint)
            for piece in shards.slices:
                if saved.shapes.get(piece.name) != piece.shape:
                    raise DamagedFile(f"{piece.name} is missing, or its shape is not {piece.shape}")
                master = shards.masters[piece.partition]
                state, moments = shards.optimizer_state(piece.partition), shards.moments(piece.partition)
                for flat, moment in ((master, None), *((state[moment], moment) for moment in moments)):
                    saved.read_into(piece.of(flat).view(-1), piece.name, piece.start, moment)
            shards.set_optimizer_steps(saved.optimizer_steps)
            if stream_states is not None:
                _load_stream_states(checkpoint, stream_states)

    raise_on_any_rank(f"reading {checkpoint}", read)
    shards.update_weights()


def _load_stream_states(checkpoint: Path, stream_states: StreamStates) -> None:
    files = [TensorFile(checkpoint / name) for name in tensor_files(checkpoint) if name.startswith(STREAMS_PREFIX)]
    for name, x in stream_states.tensors().items():
        file = next((file for file in files if file.shapes.get(name) == tuple(x.shape)), None)
        if file is None:
            raise DamagedFile(f"no file holds the stream state {name} with shape {tuple(x.shape)}")
        values = torch.empty(x.numel())
        file.read_into(values, name)
        x.copy_(values.view(x.shape))


def verify_initial(initial: InitialWeights) -> None:
    """Raise SharedError if the initial weights are a checkpoint whose files do not match its manifest. Collective."""
    if initial.weights.step is not None and (wrong := damaged_files(initial.weights.source)):
        raise SharedError(f"{initial.weights.source} is damaged ({wrong}): give another one with --init.")


def load_initial(engine: Engine, initial: InitialWeights) -> None:
    """Set the weights to those of `initial`. Collective.

    The parameters in `initial.fresh` keep their values, except that DeepEmbed tables become ones. Raises UserError on
    all ranks if a file is damaged.
    """
    shards, weights = engine.shards, initial.weights

    def read() -> None:
        for piece in shards.slices:
            values = piece.of(shards.masters[piece.partition]).view(-1)
            if piece.name.endswith(".enn.weight") and piece.name in initial.fresh:
                values.fill_(1.0)
            elif piece.name in weights.tensors.shapes and piece.name not in initial.fresh:
                weights.read_into(values, piece.name, piece.start)

    raise_on_any_rank(f"reading {weights.source}", read)
    shards.update_weights()


def load_frozen(engine: Engine, base: Base) -> None:
    """Read this rank's share of the frozen weights from `base`. Collective.

    Call this function before `update_weights`, which gathers the frozen weights.
    """

    def read() -> None:
        for name, values, start in engine.shards.frozen_slices():
            base.read_into(values, name.replace(".base_layer.", "."), start)

    raise_on_any_rank(f"reading {base.weights.source}", read)
