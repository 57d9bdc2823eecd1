"""Reading lanes: whole pieces, window after window, the state at one's end being that at the next one's beginning.

So every piece is read from its first token to its last, and neither the windows nor the lanes matter to what comes out.
"""

import torch
from torch import Tensor

from rwkv_music.data.dataset import Batch
from rwkv_music.data.lanes import Lanes
from rwkv_music.model_v8 import RWKV, State


def entering(carried: State, batch: Batch) -> State:
    """The state of each document of a batch of lanes, from that of each lane: only a piece that goes on has one."""
    edges = batch.edges
    return carried.rows(edges.rows).among(batch.cu_seqlens.numel() - 1, edges.documents)


@torch.no_grad()
def summed_loss_of_lanes(
    model: RWKV, lanes: Lanes, own: range, device: torch.device | str, max_rows: int = 0
) -> Tensor:
    """This rank's share of a split's loss, states carried: float64 [2], the sum of the nats, and of how many targets.

    Every piece is read from its beginning to its end, so that neither the windows nor the lanes matter. With `max_rows`
    only the first rows of the split count (rounded up to whole windows). Every rank runs as many batches.

    Args:
        own: the lanes of this rank.
    """
    total = torch.zeros(2, dtype=torch.float64, device=device)
    state = model.init_state(len(own))
    windows = min(lanes.windows_per_pass, -(-max_rows // lanes.n_lanes) or lanes.windows_per_pass)
    for window in range(windows):
        batch = lanes.batch(window, own.start, own.stop)
        count = batch.n_targets
        batch = batch.to(device)
        loss, after = model(**batch.arguments(), state=entering(state, batch), reduction="sum")
        state = after.rows(batch.edges.last)
        total += torch.stack([loss.double(), loss.new_tensor(count, dtype=torch.float64)])
    return total
