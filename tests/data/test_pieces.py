"""Pieces read from a dataset equal the encoded files, including their bar positions."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_music.data.pieces import Pieces
from rwkv_music.tokenizers.registry import load_codec


@pytest.mark.parametrize("dataset", ["bach_data", "bach_data_midi_llm"])
def test_pieces_keep_their_bars(dataset, bach_midi, request):
    folder = request.getfixturevalue(dataset)
    codec = load_codec(folder / "tokenizer.json")
    by_ids = {codec.encode(path).tobytes(): codec.encode_piece(path) for path in Path(bach_midi).glob("*.mid")}
    pieces = Pieces(folder, "val", codec)
    assert len(pieces) > 0
    for piece in (pieces[i] for i in range(len(pieces))):
        original = by_ids[piece.ids.tobytes()]
        assert np.array_equal(piece.bar_starts, original.bar_starts)
        if dataset == "bach_data":
            assert piece.bar_lines is None
            continue
        # Bar lines are exact to within one wait, and every bar has a positive length. The first bar is excluded because
        # an upbeat starts before the first token.
        assert len(piece.bar_lines.start_ms) == len(original.bar_lines.start_ms)
        assert np.abs(piece.bar_lines.start_ms - original.bar_lines.start_ms)[1:-1].max() <= 1000
        assert (np.diff(piece.bar_lines.start_ms) > 0).all()


def test_dataset_without_bar_files_uses_the_codec(bach_data, tmp_path):
    for path in bach_data.iterdir():
        if ".bars." not in path.name:
            (tmp_path / path.name).symlink_to(path)
    codec = load_codec(tmp_path / "tokenizer.json")
    with_bars, without = Pieces(bach_data, "val", codec), Pieces(tmp_path, "val", codec)
    assert all(np.array_equal(with_bars[i].bar_starts, without[i].bar_starts) for i in range(len(without)))
