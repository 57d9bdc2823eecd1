"""Pieces out of a dataset are those that went in, with their bars where they were."""

from pathlib import Path

import numpy as np
import pytest

from rwkv_music.data.pieces import Pieces
from rwkv_music.prepare.pipeline import prepare
from rwkv_music.tokenizers.registry import load_codec


@pytest.mark.parametrize("tokenizer", ["remi", "midi-llm"])
def test_pieces_keep_their_bars(tokenizer, bach_midi, tmp_path):
    prepare([bach_midi], tmp_path / "data", tokenizer=tokenizer, workers=1, val_fraction=0.2)
    codec = load_codec(tmp_path / "data" / "tokenizer.json")
    by_ids = {codec.encode(path).tobytes(): codec.encode_piece(path) for path in Path(bach_midi).glob("*.mid")}
    pieces = Pieces(tmp_path / "data", "val", codec)
    assert len(pieces) > 0
    for piece in (pieces[i] for i in range(len(pieces))):
        original = by_ids[piece.ids.tobytes()]
        assert np.array_equal(piece.bar_starts, original.bar_starts)
        if tokenizer == "remi":
            assert piece.bar_lines is None
            continue
        # Bars are told by the tokens' clock: to within a wait of a bar line, and every bar has a length. A pick-up bar
        # begins before the first token, which the tokens cannot tell.
        assert len(piece.bar_lines.start_ms) == len(original.bar_lines.start_ms)
        assert np.abs(piece.bar_lines.start_ms - original.bar_lines.start_ms)[1:-1].max() <= 1000
        assert (np.diff(piece.bar_lines.start_ms) > 0).all()


def test_a_dataset_without_bars_has_the_codecs_own(bach_data, tmp_path):
    for path in bach_data.iterdir():
        if ".bars." not in path.name:
            (tmp_path / path.name).symlink_to(path)
    codec = load_codec(tmp_path / "tokenizer.json")
    with_bars, without = Pieces(bach_data, "val", codec), Pieces(tmp_path, "val", codec)
    assert all(np.array_equal(with_bars[i].bar_starts, without[i].bar_starts) for i in range(len(without)))
