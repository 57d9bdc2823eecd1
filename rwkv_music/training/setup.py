"""A run before its first step: what fits together is found out, the ranks meet, the model gets its memory and weights.

In this order: first what each rank can find out for itself, so that a mistake is told before the ranks wait for one
another; then what they agree on; then what takes minutes. Nothing is written before all of it has gone well.
"""

import dataclasses
import json
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from tqdm import tqdm

from rwkv_music.checkpoint.run_folder import Progress, check_resumable, find_checkpoint, passed_over, remove_unfinished
from rwkv_music.checkpoint.tuning import BaseNote, add_trained, freeze
from rwkv_music.checkpoint.weights import open_weights, unread_tensors
from rwkv_music.config import RunConfig
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.errors import SharedError, UserError, explained
from rwkv_music.files import atomic_path, write_text
from rwkv_music.model_v8 import RWKV
from rwkv_music.tokenizers.registry import load_codec
from rwkv_music.training.consensus import on_rank0, raise_on_any_rank
from rwkv_music.training.deepspeed_engine.engine import (
    Plan,
    check_quantisation,
    device_of_rank,
    divided,
    make_engine,
    make_plan,
    may_gather_at_once,
    offloads,
    rank,
    read_deepspeed_file,
    wait_for_compilations,
)
from rwkv_music.training.deepspeed_engine.fast import cuda_graphs
from rwkv_music.training.init_weights import allocate, fill_frozen, open_base, open_initial
from rwkv_music.training.loading import damaged_files, load_checkpoint
from rwkv_music.training.memory import (
    Carried,
    MemoryEstimate,
    available_bytes,
    check_host_memory,
    estimate,
    least_recompute,
)
from rwkv_music.training.process_group import meet, ranks_share_a_host
from rwkv_music.training.samples import HeldOut
from rwkv_music.training.saving import Saver, take_over
from rwkv_music.training.signals import CRASHED, Stopped
from rwkv_music.training.tbptt import StreamStates
from rwkv_music.training.validation import Validation
from rwkv_music.training.wandb_run import check_wandb


class Run:
    """A run from its configuration to the point where it can take its next step.

    Args:
        config: the run; `config.model.vocab_size` may be 0 and is then the dataset's.
        deepspeed_file: the DeepSpeed JSON file.
        given: the names of the settings that the user set himself; the DeepSpeed file may set the others.

    Attributes:
        config, plan: what it does, and how the ranks share it.
        folder: the run folder.
        train_data, streams, validation, held_out: what is read; all but the first may be None.
        progress: how far it has got.
        resumed_from, passed_over: a checkpoint, and the damaged newer ones; initial, base: else weights to begin with.
        device, first, store: this rank's; whether it is rank 0; where the ranks met.
        parameters, trained: elements of the model, and those of them that are not frozen.
        memory, memory_there, recompute: what a step takes by estimate, of how much, and what is computed again for it.
        engine, stream_states, saver: the model on this rank, the states that are carried, what writes checkpoints.

    Raises:
        UserError: whatever of it does not fit together, before anything is written or allocated.
        Stopped: the ranks do not see the same files.
    """

    def __init__(self, config: RunConfig, deepspeed_file: str | os.PathLike, given: set[str]) -> None:
        self._bring_together(config, deepspeed_file, given)
        self._find_the_start()
        self._meet()
        self._verify_the_start()
        self._make_engine(self._make_model())
        self._fill_engine()
        unread = self._unread_tensors()
        self.token = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}"
        if self.first:
            self._make_folder()
        self.saver = Saver(self.engine, self.config, self.token, self.stream_states, unread)

    def _bring_together(self, config: RunConfig, deepspeed_file: str | os.PathLike, given: set[str]) -> None:
        """The command line, the DeepSpeed file and the data."""
        file = read_deepspeed_file(deepspeed_file)
        self.zero: dict[str, Any] = file["zero_optimization"]
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        train = config.train
        if "micro_batch_size" not in given and train.micro_batch_size and not train.elastic:
            most = train.micro_batch_size  # of a run that may have had another number of ranks
            train = dataclasses.replace(train, micro_batch_size=divided(train.batch_size, world_size, most))
        windows = max(1, config.data.tbptt)
        self.plan: Plan = make_plan(train, given, file, deepspeed_file, world_size, windows)
        if train.log == "wandb":
            check_wandb()
        data = config.data
        self.train_data = MusicDataset.of(data, "train")
        if not (Path(data.data) / "tokenizer.json").is_file():
            raise UserError(f"{data.data} is damaged (no tokenizer.json): prepare the data again.")
        if config.model.vocab_size not in (0, self.train_data.vocab_size):
            raise UserError(
                f"The model's vocabulary is {config.model.vocab_size} tokens, "
                f"but that of {data.data} is {self.train_data.vocab_size}: "
                f"prepare the data with the model's tokenizer, or start a new run."
            )
        model_config = dataclasses.replace(config.model, vocab_size=self.train_data.vocab_size)
        self.config = RunConfig(model_config, data, self.plan.train)
        self.rows_a_step = self.plan.train.batch_size * windows
        self.streams = DocumentStreams(self.train_data, self.plan.train.batch_size, data.tbptt) if data.tbptt else None
        self.validation = Validation.of(self.config, world_size)

    def _find_the_start(self) -> None:
        """The checkpoint or the weights that it starts from, as far as one rank can tell by itself."""
        train = self.config.train
        self.folder = Path(train.out)
        self.progress, self.data_before = Progress(0, 0, 0, self.plan.world_size, self.zero_stage), ""
        self.resumed_from = find_checkpoint(self.folder, train.resume)
        self.passed_over = passed_over(self.folder, self.resumed_from) if train.resume == "auto" else []
        if self.resumed_from is not None:
            self._check_tokenizer()
            check_resumable(self.resumed_from, self.config)
        tuned = train.tune != "all"
        self.initial = self.base = self.base_note = None
        if train.init and (self.resumed_from is None or tuned):
            self.initial = open_initial(train.init, self.config.model, self.train_data.fingerprint)
            self.base = open_base(self.initial, self.config.model, train.tune) if tuned else None
        self.held_out = HeldOut(self.config, "val" if self.validation else "train") if train.sample_every else None
        if (self.folder / "config.json").exists():
            RunConfig.load(self.folder / "config.json")  # a folder of something else is not written into

    def _meet(self) -> None:
        """The ranks, of which each has found no fault so far."""
        hang_minutes = self.config.train.hang_minutes
        # Longer than the watchdog's patience, so that it is the one who speaks.
        self.store = meet(collective_minutes=hang_minutes + 5 if hang_minutes else 7 * 24 * 60)
        self.device = device_of_rank()
        self.first = rank() == 0
        check_quantisation(self.zero, self.device)
        wait_for_compilations(self.zero)
        self._check_all_see_alike()

    def _verify_the_start(self) -> None:
        """What it starts from, of which the ranks share the work of reading."""
        if self.resumed_from is not None:
            self.resumed_from = self._whole(self.resumed_from)
            saved = check_resumable(self.resumed_from, self.config)
            self.data_before = RunConfig.load(self.resumed_from / "config.json").data.data
            self.progress = dataclasses.replace(saved, world_size=self.plan.world_size, zero_stage=self.zero_stage)
        if self.initial is not None:
            self.initial.verify()

    def _make_model(self) -> RWKV:
        """The model with its memory; what will be read from a file is zero as yet."""
        train, seed = self.config.train, self.config.data.seed
        torch.manual_seed(seed)
        with torch.device("meta"):
            model = RWKV(self.config.model)
        freeze(model, train)
        if self.device.type == "cpu":
            check_host_memory(model, self.zero_stage, self.plan)
        self.matrix_parameters = model.matrix_parameters()
        fresh = self.initial.fresh if self.initial else None if self.resumed_from is None else frozenset()
        allocate(model, self.device, self.plan, fresh)
        add_trained(model, train, seed)
        sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
        self.parameters = sum(size for size, _ in sizes)
        self.trained = sum(size for size, trains in sizes if trains)  # of them
        return model

    def _make_engine(self, model: RWKV) -> None:
        """DeepSpeed's engine over the model, with the ways of a step that pay for it here."""
        host_bound = cuda_graphs.host_bound(self.config, self.device, ranks_share_a_host(), self.matrix_parameters)
        at_once = host_bound and may_gather_at_once(self.zero, self.parameters)
        recorded = host_bound and cuda_graphs.recordable(self.config, self.zero, at_once)
        overlaps = self.plan.world_size > 1 and not recorded
        self.memory_there = available_bytes(self.device)
        model.recompute, self.memory = least_recompute(
            self.config.train.recompute,
            lambda level: self._estimate_memory(level, overlaps, at_once, recorded),
            self.memory_there,
        )
        self.recompute: str = model.recompute
        self.engine = make_engine(model, self.plan, self.device, overlaps, at_once)
        if recorded:
            cuda_graphs.record(self.engine, self.config.data.ctx_len, accumulates=self.plan.accumulation > 1)

    def _fill_engine(self) -> None:
        """With weights, and what else a checkpoint has."""
        if self.base is not None:
            fill_frozen(self.engine, self.base)
        self.stream_states = (
            StreamStates(self.engine, self.config.model, self.own_rows(0)) if self.config.data.tbptt else None
        )
        if self.resumed_from is not None:
            load_checkpoint(self.engine, self.resumed_from, self.stream_states)
        elif self.initial is not None:
            self.initial.fill(self.engine)
        if self.base is not None:
            raise_on_any_rank(f"reading {self.base.weights.source}", on_rank0(self._check_base))

    @property
    def zero_stage(self) -> int:
        """1, 2 or 3."""
        return self.zero["stage"]

    @property
    def stop(self) -> int:
        """The last step of this start."""
        t = self.config.train
        return min(t.steps, t.stop_after or t.steps)

    def own_rows(self, first: int) -> list[range]:
        """This rank's share of the `batch_size` rows that begin with number `first`, by micro-batches."""
        shares = self.plan.world_size * self.plan.accumulation
        ends = [first + self.config.train.batch_size * i // shares for i in range(shares + 1)]
        return [range(ends[i], ends[i + 1]) for i in range(rank(), shares, self.plan.world_size)]

    def say(self, text: str) -> None:
        """To the user, once for all ranks."""
        if self.first:
            tqdm.write(text, file=sys.stdout)

    def _check_tokenizer(self) -> None:
        run_codec = load_codec(self.resumed_from / "tokenizer.json")
        if run_codec.fingerprint != self.train_data.fingerprint:
            raise UserError(
                f"{self.config.data.data} was prepared with another tokenizer than {self.folder} was trained with: "
                f"prepare the data with the run's tokenizer, or choose another --out."
            )

    def _check_all_see_alike(self) -> None:
        """On a file system of several machines one may not see yet what another has just written or removed."""
        found: list[str | None] = [None] * self.plan.world_size
        dist.all_gather_object(found, self.resumed_from and self.resumed_from.name)
        other = next((i for i, name in enumerate(found) if name != found[0]), None)
        if other is not None:
            raise Stopped(
                f"not begun, as the ranks do not see the same newest checkpoint in {self.folder} (rank 0 {found[0]}, "
                f"rank {other} {found[other]}); the same command goes on when the file system shows all of them one",
                CRASHED,
            )

    def _check_base(self) -> None:
        """Note what the base is, or hold it against what the run noted when it started."""
        self.base_note = BaseNote(self.config.train.init, self.base.sha256())
        if self.resumed_from is not None:
            self.base.check(BaseNote.read(self.resumed_from).sha256, self.resumed_from)

    def _whole(self, checkpoint: Path) -> Path:
        """`checkpoint` if its tensors are as they were written; with --resume auto else the newest one before it."""
        while wrong := damaged_files(checkpoint):
            if self.config.train.resume != "auto":
                raise SharedError(f"{checkpoint} is damaged ({wrong}): name another one with --resume.")
            self.passed_over.append(f"{checkpoint.name}: {wrong}")
            checkpoint = find_checkpoint(self.folder, before=checkpoint)
        return checkpoint

    def _unread_tensors(self) -> dict[str, torch.Tensor]:
        """What the file that the run began with holds and nothing reads, to be given back by `export`; on rank 0."""
        source = self.resumed_from or (self.initial and self.initial.weights.source)
        if source is None or self.config.train.tune != "all":  # what is tuned leaves its base as it is
            return {}
        weights = on_rank0(lambda: unread_tensors(open_weights(source, verify=False)))
        return raise_on_any_rank(f"reading {source}", weights) or {}

    def _make_folder(self) -> None:
        with explained(f"making the run folder {self.folder}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.progress.step < self.stop:  # else nothing will be done under it
                self.config.save(self.folder / "config.json")
                write_text(self.folder / "deepspeed.json", json.dumps(self.plan.deepspeed, indent=2) + "\n")
            if self.base_note is not None:
                self.base_note.write(self.folder)
            with atomic_path(self.folder / "tokenizer.json") as partial:
                partial.write_bytes((Path(self.config.data.data) / "tokenizer.json").read_bytes())
            remove_unfinished(self.folder)
            if other := take_over(self.folder, self.token):
                self.say(f"Process {other}, which had this run before, still runs: from now on it saves no more.")

    def _estimate_memory(self, recompute: str, overlaps: bool, at_once: bool, recorded: bool) -> MemoryEstimate:
        carried, rows = None, self.config.train.micro_batch_size
        if self.streams:
            documents = rows * self.streams.documents_per_row
            carried = Carried(rows * self.plan.accumulation, rows, documents, self.config.data.tbptt)
        return estimate(
            self.config.model,
            self.parameters,
            self.trained,
            zero_stage=self.zero_stage,
            ranks=self.plan.world_size,
            tokens=rows * self.config.data.ctx_len,
            recompute=recompute,
            bucket=int(self.zero.get("reduce_bucket_size", 5e8)),
            offload=offloads(self.zero),
            live=int(self.zero.get("stage3_max_live_parameters", 1e9)),
            overlaps=overlaps and bool(self.zero.get("overlap_comm")),
            at_once=at_once,
            recorded=recorded,
            accumulates=self.plan.accumulation * max(1, self.config.data.tbptt) > 1,
            carried=carried,
        )
