"""Set up a run: build its `Context` from its configuration.

The checks that need no other rank come first, so that an error is reported before the ranks wait for one another. The
run folder is written last.
"""

import dataclasses
import functools
import json
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from tqdm import tqdm

from rwkv_music.checkpoint.run_folder import (
    CHECKPOINTS,
    ROLLBACKS,
    Progress,
    Rollback,
    check_resumable,
    damage_of_chosen,
    find_checkpoint,
    read_progress,
    read_rollbacks,
    remove_unfinished,
    skipped_checkpoints,
)
from rwkv_music.checkpoint.tuning import Base, BaseNote, add_trained, freeze
from rwkv_music.checkpoint.validations import VALIDATIONS, Validations
from rwkv_music.checkpoint.weights import open_weights, unread_tensors
from rwkv_music.config import RECOMPUTE, RunConfig
from rwkv_music.data.dataset import check_tokenizer_file
from rwkv_music.data.mixture import Mixture
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.errors import SharedError, UserError, explained
from rwkv_music.files import atomic_path, read_file, write_text
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import load_codec
from rwkv_music.training.batch_plan import BatchPlan, largest_micro_batch, plan_batches
from rwkv_music.training.consensus import from_rank0, on_rank0, raise_on_any_rank
from rwkv_music.training.deepspeed_engine import engine as deepspeed_engine
from rwkv_music.training.deepspeed_engine.engine import Engine, FastPaths
from rwkv_music.training.deepspeed_file import check_quantization, offloads, read_deepspeed_file
from rwkv_music.training.init_weights import InitialWeights, open_base, open_initial
from rwkv_music.training.loading import damaged_files, load_checkpoint, load_frozen, load_initial, verify_initial
from rwkv_music.training.memory import (
    MemoryEstimate,
    StreamMemory,
    available_bytes,
    check_gpu_memory,
    check_host_memory,
    estimate,
    least_recompute,
    muon_elements,
)
from rwkv_music.training.process_group import consecutive_ranks, init_process_group, ranks_share_a_host
from rwkv_music.training.samples import HeldOut
from rwkv_music.training.saving import Saver, take_over
from rwkv_music.training.signals import CRASHED, Stopped
from rwkv_music.training.tbptt import StreamStates
from rwkv_music.training.validation import Validation
from rwkv_music.training.wandb_run import check_wandb


@dataclass(frozen=True)
class RunData:
    """The datasets of a run."""

    train: Mixture  # of one dataset or several
    streams: DocumentStreams | None  # the training split as document streams, with `tbptt`
    validation: Validation | None  # None if it is turned off or no dataset has a validation split
    held_out: HeldOut | None  # the piece that samples continue and fill in; None if no samples are drawn


@dataclass(frozen=True)
class RunStart:
    """The checkpoint or weights that a run starts from."""

    checkpoint: Path | None  # the checkpoint that the run resumes from; None for a new run
    skipped_checkpoints: tuple[str, ...]  # one message per newer damaged checkpoint
    initial: InitialWeights | None  # weights given by --init; a resumed run has them only if it is tuned
    base: Base | None  # the frozen part of `initial` in a tuned run
    progress: Progress  # steps and rows done so far
    rollbacks: dict[str, Rollback]  # returns to earlier checkpoints, by checkpoint name
    validations: Validations  # of the resumed run; empty if the checkpoint is of another run
    previous_data: str  # description of the data that the checkpoint was trained on; "" without a checkpoint


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts: total, trained, in matrix products (`RWKV.matrix_parameters`), and updated by Muon."""

    parameters: int
    trained: int
    matrix_parameters: float
    by_muon: int


@dataclass(frozen=True)
class MemoryPlan:
    """Available bytes of a GPU, the estimate for a step, and the level of activation checkpointing chosen for it."""

    available: float
    estimate: MemoryEstimate
    recompute: str


@dataclass(frozen=True)
class Context:
    """All that the training loop needs of a run. `setup` creates it."""

    config: RunConfig
    plan: BatchPlan
    folder: Path  # the run folder
    data: RunData
    start: RunStart
    store: dist.Store  # the rendezvous store
    rank: int
    group: dist.ProcessGroup | None  # the ranks that read the same rows; None without context parallelism
    engine: Engine
    stream_states: StreamStates | None  # None without `tbptt`
    saver: Saver
    size: ModelSize
    memory: MemoryPlan
    fast_mismatch: str | None  # the reason for using DeepSpeed's own code paths; None if the run uses `fast`

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def last_step(self) -> int:
        """The step at which this invocation ends."""
        train = self.config.train
        return min(train.steps, train.stop_after or train.steps)

    @property
    def rows_per_step(self) -> int:
        """Rows that a step reads; with `tbptt`, each window of a stream counts as a row."""
        return self.config.train.batch_size * max(1, self.config.data.tbptt)

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on rank 0 only."""
        if self.rank == 0:
            tqdm.write(text, file=sys.stdout)


def setup(config: RunConfig, deepspeed_file: str | os.PathLike, given: set[str]) -> Context:
    """Set up a run and return its `Context`. Collective.

    A `config.model.vocab_size` of 0 is replaced by the dataset's vocabulary size. `given` names the settings on the
    command line; the DeepSpeed file may set some of the others. Raises UserError if the settings, the data and the
    files do not fit together, or if a file cannot be read or written. Raises Stopped if the ranks find different newest
    checkpoints.
    """
    # Checks on each rank.
    config, plan, rows = _read_inputs(config, deepspeed_file, given)
    folder = Path(config.train.out)
    start = _find_start(config, plan, rows)
    data = _read_data(config, plan, rows)
    if (folder / "config.json").exists():
        RunConfig.load(folder / "config.json")  # reject a folder that another program made

    # Collective checks.
    hang_minutes = config.train.hang_minutes
    # Collectives have a longer time limit than the watchdog, so that the watchdog reports a hang first.
    minutes = hang_minutes + 5 if hang_minutes else 7 * 24 * 60
    store = init_process_group(deepspeed_engine.communication_backend(), minutes)
    group = consecutive_ranks(plan.train.context_parallel, minutes)
    device = deepspeed_engine.select_device()
    rank = dist.get_rank()
    check_quantization(plan.zero, device)
    deepspeed_engine.wait_for_compilations(plan.zero)
    _check_same_checkpoint(folder, start.checkpoint)
    start = _verify_start(config, plan, folder, start)

    # Model and weights.
    model, size = _make_model(config, plan, device, start, data.streams)
    fast = deepspeed_engine.choose_paths(
        config, plan, device, ranks_share_a_host(), size.matrix_parameters, size.parameters
    )
    available = available_bytes(device)

    def estimate_with(recompute: str) -> MemoryEstimate:
        return _estimate_memory(config, plan, data.streams, size, recompute, fast)

    model.recompute, expected = least_recompute(config.train.recompute, estimate_with, available)
    memory = MemoryPlan(available, expected, model.recompute)
    engine = deepspeed_engine.make_engine(model, plan, device, fast, config.data.ctx_len)
    streams = plan.row_ranges(rank, 0)
    stream_states = StreamStates(engine, config.model, streams, group) if config.data.tbptt else None
    base_note = _load_weights(engine, stream_states, config, start)
    unread = _unread_tensors(config, start)

    # Output files.
    token = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
    context = Context(
        config=config,
        plan=plan,
        folder=folder,
        data=data,
        start=start,
        store=store,
        rank=rank,
        group=group,
        engine=engine,
        stream_states=stream_states,
        saver=Saver(engine, config, token, start.validations, stream_states, unread),
        size=size,
        memory=memory,
        fast_mismatch=deepspeed_engine.fast_mismatch(config.train.fast),
    )
    make_folder = on_rank0(lambda: _make_folder(context, token, base_note))
    raise_on_any_rank(f"making the run folder {folder}", make_folder)
    return context


def _read_inputs(
    config: RunConfig, deepspeed_file: str | os.PathLike, given: set[str]
) -> tuple[RunConfig, BatchPlan, Mixture]:
    """Read and cross-check the command line, the DeepSpeed file and the data."""
    file = read_deepspeed_file(deepspeed_file)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    train, data = config.train, config.data
    if "micro_batch_size" not in given and train.micro_batch_size and not train.elastic:
        limit = train.micro_batch_size  # saved by a run that may have used another number of ranks
        groups = max(1, world_size // train.context_parallel)
        micro_batch_size = largest_micro_batch(train.batch_size, groups, limit)
        train = dataclasses.replace(train, micro_batch_size=micro_batch_size)
    plan = plan_batches(train, given, file, deepspeed_file, world_size, windows=max(1, data.tbptt))
    train = plan.train
    if train.optimizer == "muon" and offloads(plan.zero):
        raise UserError(
            f"--optimizer muon does not support optimizer states on the CPU, which {deepspeed_file} sets with "
            f'"offload_optimizer": use a file without it, such as ds_configs/zero3.json, or --optimizer adamw.'
        )
    if train.log == "wandb":
        check_wandb()
    rows = Mixture(data)
    for part in rows.parts:
        check_tokenizer_file(part.folder)
    if config.model.vocab_size not in (0, rows.vocab_size):
        raise UserError(
            f"The model's vocabulary has {config.model.vocab_size} tokens, but that of {data.description} has "
            f"{rows.vocab_size}: prepare the data with the model's tokenizer, or start a new run."
        )
    return RunConfig(dataclasses.replace(config.model, vocab_size=rows.vocab_size), data, train), plan, rows


def _read_data(config: RunConfig, plan: BatchPlan, rows: Mixture) -> RunData:
    """Open the validation split, the document streams and the held-out piece for samples."""
    train, tbptt = config.train, config.data.tbptt
    first = rows.parts[0]  # with `tbptt` there is only one dataset
    streams = DocumentStreams(rows.datasets[first.name], train.batch_size, tbptt) if tbptt else None
    validation = Validation.of(config, plan)
    if train.patience and validation is None:
        raise UserError(
            f"--patience {train.patience} counts validations, but there are none: set --val_every, or choose a dataset "
            f"with a validation split."
        )
    folder, split = (validation.parts[0].folder, "val") if validation else (first.folder, "train")
    held_out = HeldOut(config, folder, split) if train.sample_every else None
    return RunData(rows, streams, validation, held_out)


def _find_start(config: RunConfig, plan: BatchPlan, rows: Mixture) -> RunStart:
    """Find the checkpoint or the weights to start from, using only this rank's view of the file system."""
    train = config.train
    folder = Path(train.out)
    checkpoint = find_checkpoint(folder, train.resume)
    damaged = skipped_checkpoints(folder, checkpoint) if train.resume == "auto" else []
    if checkpoint is not None:
        if load_codec(checkpoint / "tokenizer.json").fingerprint != rows.fingerprint:
            raise UserError(
                f"{config.data.description} was prepared with another tokenizer than {folder} was trained with: "
                f"prepare the data with the run's tokenizer, or choose another --out."
            )
        check_resumable(checkpoint, config)
    initial = base = None
    if train.init and (checkpoint is None or train.tune != "all"):
        initial = open_initial(train.init, config.model, rows.fingerprint)
        base = open_base(initial, config.model, train.tune) if train.tune != "all" else None
    progress = Progress(0, 0, 0, plan.world_size, plan.zero_stage)
    return RunStart(checkpoint, tuple(damaged), initial, base, progress, {}, Validations(folder), "")


def _check_same_checkpoint(folder: Path, checkpoint: Path | None) -> None:
    """Raise Stopped if the ranks found different checkpoints, which can happen on a shared file system. Collective."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, checkpoint and checkpoint.name)
    other = next((i for i, name in enumerate(found) if name != found[0]), None)
    if other is not None:
        raise Stopped(
            f"not started, because the ranks see different newest checkpoints in {folder} (rank 0 {found[0]}, rank "
            f"{other} {found[other]}); rerun the command once all ranks see the same newest checkpoint",
            CRASHED,
        )


def _verify_start(config: RunConfig, plan: BatchPlan, folder: Path, start: RunStart) -> RunStart:
    """Check the hashes of the files to start from, and return `start` with what the checkpoint records. Collective.

    With `--resume auto`, an older checkpoint replaces a damaged one.
    """
    checkpoint, damaged = start.checkpoint, list(start.skipped_checkpoints)
    if checkpoint is not None:
        while fault := damaged_files(checkpoint):
            if config.train.resume != "auto":
                raise SharedError(damage_of_chosen(checkpoint, fault, folder))
            damaged.append(f"{checkpoint.name}: {fault}")
            find_older = functools.partial(find_checkpoint, folder, before=checkpoint)
            checkpoint = from_rank0(f"reading {folder}", find_older)

        def read() -> tuple[Progress, RunConfig]:
            return check_resumable(checkpoint, config), RunConfig.load(checkpoint / "config.json")

        saved, saved_config = raise_on_any_rank(f"reading {checkpoint}", read)
        rollbacks, validations = {}, start.validations
        if checkpoint.resolve().parent == (folder / CHECKPOINTS).resolve():

            def read_records() -> tuple[dict[str, Rollback], Validations]:
                return read_rollbacks(folder), Validations.read(folder)

            rollbacks, validations = from_rank0(f"reading {folder}", read_records)
        rolled_back = rollbacks.get(checkpoint.name)
        start = dataclasses.replace(
            start,
            checkpoint=checkpoint,
            skipped_checkpoints=tuple(damaged),
            progress=dataclasses.replace(
                saved,
                samples=max(saved.samples, rolled_back.samples if rolled_back else 0),
                world_size=plan.world_size,
                zero_stage=plan.zero_stage,
            ),
            rollbacks=rollbacks,
            validations=validations,
            previous_data=saved_config.data.description,
        )
    if start.initial is not None:
        verify_initial(start.initial)
    return start


def _make_model(
    config: RunConfig, plan: BatchPlan, device: torch.device, start: RunStart, streams: DocumentStreams | None
) -> tuple[RWKV, ModelSize]:
    """Allocate the model, or raise SharedError if a step does not fit into memory. Collective.

    Parameters that a file provides are zero until they are read.
    """
    train, seed = config.train, config.data.seed
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = RWKV(config.model)
    freeze(model, train)
    matrix_parameters, by_muon = model.matrix_parameters(), muon_elements(model, train.optimizer)
    if device.type == "cpu":
        check_host_memory(model, plan, config.data.ctx_len)
    least = RECOMPUTE[-1] if train.recompute == "auto" else train.recompute
    paths = FastPaths(enabled=False, overlaps=False)  # the choice that takes the least memory
    expected = _estimate_memory(config, plan, streams, _size(model, matrix_parameters, by_muon), least, paths)
    check_gpu_memory(expected, available_bytes(device))
    fresh = start.initial.fresh if start.initial else None if start.checkpoint is None else frozenset()
    deepspeed_engine.materialize(model, device, plan, fresh)
    raise_on_any_rank("adding the tuned parameters", lambda: add_trained(model, train, seed))
    return model, _size(model, matrix_parameters, by_muon)


def _size(model: RWKV, matrix_parameters: float, by_muon: int) -> ModelSize:
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    return ModelSize(sum(size for size, _ in sizes), trained, matrix_parameters, by_muon)


def _estimate_memory(
    config: RunConfig,
    plan: BatchPlan,
    streams: DocumentStreams | None,
    size: ModelSize,
    recompute: str,
    fast: FastPaths,
) -> MemoryEstimate:
    rows, held = config.train.micro_batch_size, None
    if streams is not None:
        ranks = config.train.context_parallel  # they cut a micro-batch at ranks - 1 places, which may divide documents
        documents = (rows * streams.documents_per_row + ranks - 1) / ranks
        held = StreamMemory(rows * plan.accumulation, rows, documents, config.data.tbptt)
    return estimate(
        config.model,
        size.parameters,
        size.trained,
        zero_stage=plan.zero_stage,
        ranks=plan.world_size,
        tokens=plan.tokens(config.data.ctx_len),
        recompute=recompute,
        bucket=int(plan.zero.get("reduce_bucket_size", 5e8)),
        offload=offloads(plan.zero),
        live=int(plan.zero.get("stage3_max_live_parameters", 1e9)),
        overlaps=fast.overlaps and bool(plan.zero.get("overlap_comm")),
        at_once=fast.gathers_at_once,
        replays=fast.replays,
        accumulates=plan.accumulation * max(1, config.data.tbptt) > 1,
        streams=held,
        by_muon=size.by_muon,
        context_parallel=config.train.context_parallel,
    )


def _load_weights(
    engine: Engine, stream_states: StreamStates | None, config: RunConfig, start: RunStart
) -> BaseNote | None:
    """Load the checkpoint or weights that the run starts from. For a tuned run, return its base note on rank 0."""
    if start.base is not None:
        load_frozen(engine, start.base)
    if start.checkpoint is not None:
        # After a rollback the run continues with other rows, to which the saved stream states do not belong.
        rolled_back = start.progress.samples != read_progress(start.checkpoint).samples
        load_checkpoint(engine, start.checkpoint, None if rolled_back else stream_states)
    elif start.initial is not None:
        load_initial(engine, start.initial)
    if start.base is None:
        return None

    def check_base() -> BaseNote:
        note = BaseNote(config.train.init, start.base.sha256())
        if start.checkpoint is not None:
            start.base.check(BaseNote.read(start.checkpoint).sha256, start.checkpoint)
        return note

    return raise_on_any_rank(f"reading {start.base.weights.source}", on_rank0(check_base))


def _unread_tensors(config: RunConfig, start: RunStart) -> dict[str, Tensor]:
    """Return, on rank 0, the tensors of the starting file that the model does not use. `export` writes them back."""
    source = start.checkpoint or (start.initial and start.initial.weights.source)
    if source is None or config.train.tune != "all":  # a tuned run leaves its base as it is
        return {}
    read = on_rank0(lambda: unread_tensors(open_weights(source, verify=False)))
    return raise_on_any_rank(f"reading {source}", read) or {}


def _make_folder(context: Context, token: str, base_note: BaseNote | None) -> None:
    """Create the run folder and make this process its owner."""
    config, folder = context.config, context.folder
    with explained(f"making the run folder {folder}"):
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)  # here, so that an error is raised before training
        if context.start.progress.step < context.last_step:  # else no step is left: keep the stored settings
            config.save(folder / "config.json")
            write_text(folder / "deepspeed.json", json.dumps(context.plan.deepspeed, indent=2) + "\n")
        if base_note is not None:
            base_note.write(folder)
        if not context.start.rollbacks:
            (folder / ROLLBACKS).unlink(missing_ok=True)
        if not context.start.validations.entries:
            (folder / VALIDATIONS).unlink(missing_ok=True)
        with atomic_path(folder / "tokenizer.json") as partial:
            partial.write_bytes(read_file(context.data.train.parts[0].folder / "tokenizer.json"))
        remove_unfinished(folder)
        if other := take_over(folder, token):
            context.say(
                f"Process {other}, which owned this run before, is still running; it can no longer write checkpoints."
            )
