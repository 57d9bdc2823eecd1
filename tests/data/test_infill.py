"""Rows of the infill task, beside cells that these tests read from the pieces' tokens."""

from collections import Counter

import numpy as np
import pytest

from rwkv_music.config import IGNORE_INDEX, DataConfig
from rwkv_music.data.binidx import BinIdx
from rwkv_music.data.dataset import MusicDataset
from rwkv_music.data.infill import draw_holes
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.multitrack_cells import control_tokens, read_excerpt
from rwkv_music.tokenizers.multitrack_vocabulary import END, FILL
from rwkv_music.tokenizers.registry import load_codec, make_codec

VOCABULARY = make_codec("multitrack").vocabulary


def cells_of(tokens: list[str]) -> list[dict[str, list[str]]]:
    """Return for each bar the tokens of each cell after Part, without Program."""
    bars: list[dict[str, list[str]]] = []
    cell: list[str] = []
    for token in tokens:
        if token == "Bar":
            bars.append({})
            cell = []
        elif token.startswith("Part_"):
            cell = bars[-1][token] = []
        elif not token.startswith(("Program_", "EOS", "Control_")):
            cell.append(token)
    return bars


def _number(part: str) -> int:
    return int(part.removeprefix("Part_"))


def names(ids) -> list[str]:
    return [VOCABULARY[i] for i in ids]


@pytest.fixture(scope="module")
def data(bach_data) -> MusicDataset:
    return MusicDataset(bach_data, "train", 4096, seed=3, task="infill", infill_bars=6)


def test_rows_hold_the_cells_of_the_piece(data, bach_data):
    """The context, the repeated cells and the targets are the piece's; each hole is named in the context."""
    tokens = BinIdx(bach_data / "train")
    windows = iter(range(data.tasks["infill"].n_windows))
    kinds = Counter()
    for piece in range(len(tokens)):
        original = cells_of(names(tokens[piece]))
        for first in range(len(original) - 1):
            row = data.tasks["infill"].row(next(windows), sample=first)
            ids = np.append(row.input_ids, row.targets[-1])  # the last token is the End of the last hole
            fill = names(ids).index("Fill")
            context, written = cells_of(names(ids[:fill])), names(ids[fill + 1 :])
            expected = original[first : first + len(context)]
            holes = [(i, part) for i, bar in enumerate(context) for part, cell in bar.items() if cell == ["Hole"]]
            kinds[len(holes)] += 1
            for bar, cells in zip(context, expected, strict=True):
                assert bar.keys() >= cells.keys()
                assert all(cell in (["Hole"], cells.get(part)) for part, cell in bar.items())
            # What is counted is the holes' contents in reading order, each with End.
            contents = [[*expected[i].get(part, []), "End"] for i, part in holes]
            is_counted = np.append(False, row.targets != IGNORE_INDEX)
            assert names(ids[fill + 1 :][is_counted[fill + 1 :]]) == sum(contents, []) and holes
            # Before Fill, every token except the first counts that does not mark a hole.
            before = names(ids[1:fill])
            marks = {i for i, name in enumerate(before) if name == "Hole"}
            marks |= {i - 1 for i in marks} | {i - 2 for i in marks if before[i - 1].startswith("Program_")}
            assert [i for i, counts in enumerate(is_counted[1:fill]) if not counts] == sorted(marks)
            # After Fill, a bar with holes is complete up to the last hole. The bars after and before a run come first.
            bars = sorted({i for i, _ in holes})
            repeated = []
            for bar in bars:
                if bar - 1 not in bars:
                    after = next(i for i in range(bar, len(expected) + 1) if i not in bars)
                    repeated += [after] * (after < len(expected)) + [bar - 1] * (bar > 0)
                repeated.append(bar)
            after = [
                {p: [t for t in cell if t not in ("End", "Next")] for p, cell in bar.items()}
                for bar in cells_of(written)
            ]
            wanted = [expected[i] for i in repeated]
            wanted[-1] = {part: cell for part, cell in wanted[-1].items() if _number(part) <= _number(holes[-1][1])}
            assert [{p: c for p, c in bar.items() if c} for bar in after] == wanted
    assert next(windows, None) is None and len(kinds) > 5


@pytest.mark.parametrize("augment", ["none", "all"])
def test_controls_describe_the_contents_also_after_augmentation(augment, bach_data):
    """Transposition moves notes into other registers, so controls are computed after it."""
    data = MusicDataset(bach_data, "train", 4096, seed=1, task="infill", infill_bars=6, augment=augment)
    n_controls = 0
    for window in range(0, data.tasks["infill"].n_windows, 2):
        row = data.tasks["infill"].row(window, sample=window)
        ids = np.append(row.input_ids, row.targets[-1])
        signature, controls, content = 0, [], None
        for token in ids[np.flatnonzero(ids == FILL)[0] :].tolist():
            name = VOCABULARY[token]
            if name.startswith("TimeSig_"):
                signature = token
            elif name.startswith("Part_"):
                controls, content = [], []
            elif name.startswith("Control_"):
                controls.append(token)
            elif token == END:
                [classes] = control_tokens([np.array(content, np.int64)], np.array([signature]))
                assert set(controls) <= set(classes.tolist())
                n_controls += len(controls)
            elif content is not None and not name.startswith("Program_"):
                content.append(token)
    assert n_controls > 100


def test_each_kind_of_holes_occurs_and_leaves_a_cell(bach_data):
    ids = BinIdx(bach_data / "train")[0].astype(np.int64)
    excerpt = read_excerpt(ids, 1, len(ids))
    generator = np.random.default_rng(0)
    cells = {(bar, part) for bar in range(len(excerpt.cells)) for part in excerpt.parts}
    seen = set()
    for _ in range(200):
        holes = draw_holes(excerpt, generator)
        assert holes and holes < cells
        bars, parts = {bar for bar, _ in holes}, {part for _, part in holes}
        is_block = len(holes) == len(bars) * len(parts)
        is_whole = len(parts) == len(excerpt.parts)
        ends = max(bars) == len(excerpt.cells) - 1
        kind = "parts" if is_block and len(bars) == len(excerpt.cells) else "bars" if is_block and is_whole else "block"
        seen.add((kind, ends) if is_block else "scattered")
    assert seen >= {("parts", True), ("bars", True), ("bars", False), ("block", False), "scattered"}


def test_short_blocks_of_all_parts_are_frequent(bach_data):
    """In an excerpt of 16 bars, one bar of all parts is a hole as often as several bars are."""
    ids = BinIdx(bach_data / "train")[0].astype(np.int64)
    excerpt = read_excerpt(ids, 1, len(ids)).bars(0, 16)
    generator = np.random.default_rng(1)
    lengths = Counter()
    for _ in range(2_000):
        holes = draw_holes(excerpt, generator)
        bars = sorted({bar for bar, _ in holes})
        if bars[-1] - bars[0] < len(bars) < 16 and len(holes) == len(bars) * len(excerpt.parts):
            lengths[len(bars)] += 1
    assert 0.2 < lengths[1] / lengths.total() < 0.35  # 1 / log2(16) = 1/4, and a few scattered cells
    assert lengths[8] < lengths[1] / 4 and max(lengths) == 15


def test_one_part_and_two_bars_leave_a_bar():
    codec = make_codec("multitrack")
    ids = [codec.vocabulary.index(t) for t in ("Bar", "TimeSig_4/4", "Tempo_120.0", "Part_1", "Program_0")]
    ids += [codec.vocabulary.index(t) for t in ("Position_0", "Pitch_60", "Velocity_64", "Duration_24")]
    ids += [codec.vocabulary.index(t) for t in ("Bar", "TimeSig_4/4", "Part_1", "Position_0", "Pitch_62")]
    ids += [codec.vocabulary.index(t) for t in ("Velocity_64", "Duration_24")]
    excerpt = read_excerpt(np.array([1, *ids]), 1, 1 + len(ids))
    sizes = {len(draw_holes(excerpt, np.random.default_rng(seed))) for seed in range(100)}
    assert 1 in sizes and max(sizes) <= 2


def test_only_contents_of_holes_count_in_validation(bach_data):
    rows = MusicDataset(bach_data, "val", 4096, seed=3, task="infill", infill_bars=6).tasks["infill"]
    for window in range(0, rows.n_windows, 5):
        row = rows.row(window, window)
        fill = row.input_ids.tolist().index(FILL)
        assert (row.targets[:fill] == IGNORE_INDEX).all() and (row.targets[fill:] != IGNORE_INDEX).any()


def test_rows_fit_and_keep_the_loss_on_contents(bach_data):
    data = MusicDataset(bach_data, "train", 300, task="infill")
    rows = data.tasks["infill"]
    lengths = [len(rows.row(i, i).input_ids) for i in range(rows.n_windows)]
    assert max(lengths) <= 300 and np.mean(lengths) > 150
    fitting = [row for i in range(rows.n_windows) if (row := rows.row(i, i, 100))]
    assert max(len(row.input_ids) for row in fitting) <= 100 and 0 < len(fitting) < rows.n_windows
    assert all(row.targets[-1] == END for row in fitting)  # none is cut


def test_batches_are_the_same_for_any_ranks_and_augmented_together(bach_data):
    config = DataConfig(
        data=str(bach_data), ctx_len=400, task="mix", infill_weight=0.4, completion_weight=0.1, augment="all"
    )
    data = MusicDataset.of(config, "train")
    whole = data.batch(10, 16)
    assert whole.input_ids.flatten().tolist() == sum(
        (data.batch(i, i + 2).input_ids.flatten().tolist() for i in (10, 12, 14)), []
    )
    shares = Counter(data.task_of(i)[0] for i in range(1000))
    assert shares == {"completion": 100, "infill": 400, "pretrain": 500}


def test_other_tokenizers_and_weights_are_refused(bach_data, bach_data_midi_llm):
    with pytest.raises(UserError, match="midi-llm.*--tokenizer multitrack"):
        MusicDataset(bach_data_midi_llm, "train", 100, task="infill")
    with pytest.raises(UserError, match="infill_weight"):
        DataConfig(task="mix", completion_weight=0.7, infill_weight=0.5)
    assert load_codec(bach_data / "tokenizer.json").fingerprint == make_codec("multitrack").fingerprint
