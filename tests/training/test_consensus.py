"""Agreement among ranks: no failure of one rank leaves the others waiting."""

import pytest

from rwkv_music.errors import SharedError, UserError
from rwkv_music.training import consensus
from rwkv_music.training.consensus import RankCrashed, raise_on_any_rank
from rwkv_music.training.signals import CRASHED


@pytest.mark.parametrize(
    "raised, own, others",
    [
        (None, None, None),
        (UserError("No data."), SharedError, SharedError),
        (FileNotFoundError(2, "No such file"), SharedError, SharedError),
        (TypeError("a bug"), TypeError, RankCrashed),
        (MemoryError(), MemoryError, RankCrashed),
    ],
)
def test_whatever_fails_on_one_rank_every_rank_raises(raised, own, others, monkeypatch):
    """Rank 1 fails. Both run here, one after the other, with what rank 1 sent as the answer to both."""
    sent: list[object] = []

    def gather(found: list, of_this_rank: object) -> None:
        sent.append(of_this_rank)
        found[:] = [(None, None), sent[0]]

    def action() -> int:
        if raised is not None and len(sent) == 0:
            raise raised
        return 7

    monkeypatch.setattr(consensus.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(consensus.dist, "all_gather_object", gather)
    for expected in (own, others):
        if expected is None:
            assert raise_on_any_rank("saving", action) == 7
            continue
        with pytest.raises(expected) as caught:
            raise_on_any_rank("saving", action)
        if expected is RankCrashed:
            assert caught.value.status == CRASHED
            assert "rank 1" in str(caught.value) and type(raised).__name__ in str(caught.value)
    assert len(sent) == 2  # both took part in the exchange
