"""The loss over document streams equals the loss over whole pieces, for any windows and streams."""

import torch

from rwkv_music.config import ModelConfig
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.streams import DocumentStreams
from rwkv_music.evaluation.losses import summed_loss_of_streams
from rwkv_music.model_v8 import RWKV
from tests.data.test_dataset import make

SIZES = [300, 250, 3, 40, 1, 17, 130]


def test_loss_over_streams_equals_loss_over_whole_pieces(tmp_path):
    documents = make(tmp_path, SIZES)
    torch.manual_seed(0)
    net = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=sum(SIZES) + 1)).eval()
    with torch.no_grad():
        for p in net.parameters():  # many initial weights are zero
            p += 0.05 * torch.randn_like(p)
    with torch.no_grad():
        expected = sum(
            net.loss(torch.tensor(d[None, :-1]), torch.tensor(d[None, 1:]), reduction="sum").item()
            for d in documents
            if len(d) > 1
        )
    for ctx_len, n_streams in ((16, 3), (100, 1), (50, 9)):
        streams = DocumentStreams(MusicDataset(tmp_path, "val", ctx_len), n_streams)
        halves = [range(n_streams // 2), range(n_streams // 2, n_streams)]
        total = sum(summed_loss_of_streams(net, streams, own, "cpu") for own in halves if len(own))
        assert total[1] == sum(SIZES) - len(SIZES)
        assert abs(total[0].item() / expected - 1) < 1e-6
    some = summed_loss_of_streams(net, streams, range(9), "cpu", max_rows=10)
    assert 0 < some[1] < total[1]
