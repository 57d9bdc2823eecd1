"""Run the jobs of deepembed.py on one GPU, in one process. Started by deepembed.py.

    python benchmarks/deepembed_worker.py < jobs

The jobs, the answers and the training are those of learning_worker.py. This module adds the model whose DeepEmbed gates
the hidden layer of channel mixing.

Source of the formulas and of the names: BlinkDL's RWKV-LM, RWKV-v7/rwkv_v7a_demo.py, which only runs trained models.
The initialization is this benchmark's own.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

from rwkv_music.openmp import share_cores

if __name__ == "__main__":  # before torch is imported
    share_cores(int(os.environ.get("LEARNING_WORKERS", "1")))

import learning_worker
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rwkv_music.config import ModelConfig
from rwkv_music.model_v8 import RWKV, Block, Blocks, ChannelMixing, Packing, checkpointed, token_shift
from rwkv_music.ops import fused_sublayers
from rwkv_music.ops.fused_sublayers import Documents
from rwkv_music.training import setup as setup_module
from rwkv_music.training.signals import leave

SIZE = 32  # rows and columns of each token's matrix


class GatedChannelMixing(ChannelMixing):
    """Channel mixing that multiplies its hidden layer h by a gate that depends on the token and the input x:

        S = s_emb[token] + ln0(emb[token]) s_emb_x^T    [n, n]
        h' = h * ((x s1) S s2 + s0)

    Args:
        config: the shape of an x070 model.
        normed_embeddings: returns ln0(emb) of all tokens, [V, C].
    """

    def __init__(self, config: ModelConfig, normed_embeddings: Callable[[], Tensor]) -> None:
        super().__init__(config)
        self.normed_embeddings = normed_embeddings
        self.s_emb = nn.Embedding(config.vocab_size, SIZE**2)
        self.s_emb_x = nn.Linear(config.n_embd, SIZE**2, bias=False)
        self.s0 = nn.Parameter(torch.empty(1, 1, config.dim_ffn))
        self.s1 = nn.Parameter(torch.empty(config.n_embd, SIZE))
        self.s2 = nn.Parameter(torch.empty(SIZE, config.dim_ffn))

    def forward(self, x: Tensor, input_ids: Tensor, shift: Tensor | None, packing: Packing | None) -> Tensor:
        return self.output(x, token_shift(x, shift, packing), input_ids)

    def output(self, x: Tensor, previous: Tensor, input_ids: Tensor) -> Tensor:
        """Return the output [B, T, C] for x [B, T, C], x at the token before, and input_ids int64 [B, T]."""
        k = torch.addcmul(x, previous - x, self.x_k)
        hidden = torch.relu(self.key(k)).square()
        # For the whole vocabulary, which has fewer tokens than a batch.
        table = self.s_emb.weight + self.s_emb_x(self.normed_embeddings())
        matrices = F.embedding(input_ids, table).unflatten(-1, (SIZE, SIZE))
        low = ((x @ self.s1).unsqueeze(-2) @ matrices).squeeze(-2)
        return self.value(hidden * (low @ self.s2 + self.s0))

    @torch.no_grad()
    def init_gate(self) -> None:
        """Initialize the gate's parameters so that the gate is 1, and the model computes the same as x070.

        s1 and s2 are initialized as the low-rank gates of time mixing: the first one to zero, the second one orthogonal
        with a small gain. The table is initialized as the embedding, to almost zero. The projection of the embedding is
        orthogonal, with the gain of RWKV-LM's other matrices.
        """
        self.s0.fill_(1.0)
        self.s1.zero_()
        nn.init.orthogonal_(self.s2, gain=0.1)
        nn.init.uniform_(self.s_emb.weight, -1e-4, 1e-4)
        rows, columns = self.s_emb_x.weight.shape
        nn.init.orthogonal_(self.s_emb_x.weight, gain=math.sqrt(max(rows / columns, 1.0)))


class GatedBlock(Block):
    """A block with `GatedChannelMixing`. In training on a GPU, only its time mixing is fused."""

    def __init__(self, config: ModelConfig, layer: int, normed_embeddings: Callable[[], Tensor]) -> None:
        super().__init__(config, layer)
        self.ffn = GatedChannelMixing(config, normed_embeddings)

    def forward(
        self,
        x: Tensor,
        v_first: Tensor | None,
        input_ids: Tensor,
        state: tuple[Tensor, Tensor, Tensor] | None,
        packing: Packing | Documents | None,
        recompute_ffn: bool = False,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """Compute `Block.forward`. With `Documents`, neither a state nor context parallelism is supported."""
        if not isinstance(packing, Documents):
            return super().forward(x, v_first, input_ids, state, packing, recompute_ffn)
        if state is not None or packing.context is not None:
            raise NotImplementedError("GatedBlock trains neither with a state nor with context parallelism.")
        if v_first is None:
            x = self.ln0(x)
        x, v_first, _, _ = fused_sublayers.time_mixing(self, x, v_first, packing)
        h = self.ln2(x)
        begins = (packing.first >= 0).unsqueeze(1)  # tokens without a token before them
        previous = F.pad(h[:-1], (0, 0, 1, 0)).masked_fill(begins, 0)
        output = partial(checkpointed, self.ffn.output) if recompute_ffn else self.ffn.output
        return x + output(h[None], previous[None], input_ids[None])[0], v_first, None


class GatedRWKV(RWKV):
    """RWKV with `GatedBlock`s. `config` is that of an x070 model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.blocks = Blocks(GatedBlock(config, layer, self.normed_embeddings) for layer in range(config.n_layer))
        self.init_weights()

    def normed_embeddings(self) -> Tensor:
        """Return ln0(emb) of all tokens, [V, C]."""
        return self.blocks[0].ln0(self.emb.weight)

    def _init_block(self, block: Block) -> None:
        """Initialize a block; after the last one, the gates.

        In this order, all other parameters get the values of an x070 model with the same seed.
        """
        super()._init_block(block)
        if isinstance(block, GatedBlock) and block is self.blocks[-1]:
            for each in self.blocks:
                each.ffn.init_gate()

    def parameter_groups(self, weight_decay: float, muon: bool = False) -> list[dict]:
        """Return the groups of `RWKV.parameter_groups`.

        The tables are in the group of x080's tables, without weight decay and Muon. So are s0, s1 and s2, like the
        low-rank gates. `s_emb_x` is a large matrix like the others: it has weight decay, and Muon updates it.
        """
        groups = super().parameter_groups(weight_decay, muon)
        tables = [block.ffn.s_emb.weight for block in self.blocks]
        numbers = set(map(id, tables))
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in numbers]
        groups[0]["params"] += tables
        return groups

    def matrix_parameters(self) -> float:
        """Return `RWKV.matrix_parameters` without `s_emb_x`, which multiplies the vocabulary once per batch."""
        return super().matrix_parameters() - sum(block.ffn.s_emb_x.weight.numel() for block in self.blocks)


def train(job: dict[str, Any], note: Callable[[dict], None]) -> dict[str, Any]:
    """Run a job of learning_worker.py. Its value "gated" is whether the model is a `GatedRWKV`."""
    with mock.patch.object(setup_module, "RWKV", GatedRWKV if job["gated"] else RWKV):
        return learning_worker.train_rwkv(job, note)


if __name__ == "__main__":
    leave(learning_worker.main(train))
