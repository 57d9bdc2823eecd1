"""Whole pieces in order, side by side: what training reads when states are carried from window to window.

A row of the batch is a stream. Each piece lies on one stream, and a stream's pieces follow one another without a gap; window
w of all streams is the w-th T tokens of each. So a piece that is longer than a window goes on in the same row of the next
one, and several short ones meet in one window.

Notable choices:
- Pieces are shared out by their lengths, the longest first and each to the stream that has least, so that streams end
  together but for a piece at most. What a stream has stays its own; a permutation of (seed, pass, stream) orders it anew in
  every pass.
- All streams begin a pass together: a window is found from its number alone, with no walk from the start. What is past a
  stream's last token is padding that does not count.
- A variation (see augment.py) is of a piece and a pass: its windows belong together.
"""

import heapq

import numpy as np
import torch

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.dataset import Batch, MusicDataset, StreamEdges, make_batch
from rwkv_music.data.permutation import Permutation
from rwkv_music.data.tasks import Row, next_token_row
from rwkv_music.errors import UserError
from rwkv_music.model_v8 import State
from rwkv_music.tokenizers.vocabulary import NONE


class DocumentStreams:
    """The pieces of a split on `n_streams` streams, read in windows of the dataset's `ctx_len` tokens.

    Args:
        dataset: of plain next-token prediction.
        n_streams: rows.
        together: windows that are always read together; a pass is padded to a multiple of them.

    Attributes:
        n_streams: rows of a window.
        windows_per_pass: after which every token has been read once.
        documents_a_window: of how many pieces a row holds parts, on average.

    Raises:
        UserError: a training split has fewer pieces than streams.
    """

    def __init__(self, dataset: MusicDataset, n_streams: int, together: int = 1) -> None:
        self._dataset, self.n_streams = dataset, n_streams
        lengths = np.diff(dataset.tokens.offsets)
        if dataset.split == "train" and len(lengths) < n_streams:
            raise UserError(
                f"--tbptt reads {n_streams} pieces side by side, one in each row, but {dataset.data_dir} has "
                f"{len(lengths)} to train on: choose a smaller --batch_size."
            )
        members: list[list[int]] = [[] for _ in range(n_streams)]
        streams = [(0, stream) for stream in range(n_streams)]  # a heap: tokens, stream
        for piece in np.argsort(-lengths, kind="stable").tolist():
            tokens, stream = streams[0]
            members[stream].append(piece)
            heapq.heapreplace(streams, (tokens + int(lengths[piece]), stream))
        self._members = [np.array(pieces, np.int64) for pieces in members]
        windows = -(-max(streams)[0] // dataset.ctx_len)
        self.windows_per_pass = -(-windows // together) * together
        self.documents_a_window = 1 + dataset.ctx_len / float(lengths.mean())
        self._orders: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}  # stream -> pass, pieces, where each begins
        self._varied: dict[int, tuple[int, np.ndarray]] = {}  # stream -> the sample number of the piece, its tokens

    def batch(self, window: int, first_lane: int = 0, last_lane: int | None = None) -> Batch:
        """Window number `window` of all passes together, of the streams first_lane..last_lane; `edges` is set."""
        rows = [self._row(window, stream) for stream in range(first_lane, last_lane or self.n_streams)]
        T = self._dataset.ctx_len
        input_ids = np.full((len(rows), T), self._dataset.pad_id, np.int64)
        targets = np.full((len(rows), T), IGNORE_INDEX, np.int64)
        for i, (row, _) in enumerate(rows):
            input_ids[i, : len(row.input_ids)] = row.input_ids
            targets[i, : len(row.targets)] = row.targets
        counts = np.array([len(row.starts) for row, _ in rows])
        last = counts.cumsum() - 1
        continuing = np.flatnonzero([goes_on for _, goes_on in rows])
        edges = StreamEdges(*(torch.from_numpy(x) for x in (continuing, (last - counts + 1)[continuing], last)))
        starts = [i * T + row.starts for i, (row, _) in enumerate(rows)]
        return self._dataset.checked(make_batch(input_ids, targets, starts, edges))

    def _row(self, window: int, stream: int) -> tuple[Row, bool]:
        """A stream's window, and whether its first token goes on with a piece that an earlier window has begun."""
        number, window = divmod(window, self.windows_per_pass)
        pieces, starts = self._order(number, stream)
        begin = window * self._dataset.ctx_len
        stop = min(begin + self._dataset.ctx_len + 1, int(starts[-1]))  # the target after the last token too
        if begin >= stop:
            return Row(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(1, np.int64)), False
        first, last = np.searchsorted(starts, [begin, stop - 1], side="right") - 1
        portions = []
        for place in range(first, last + 1):
            tokens = self._piece(number, stream, int(pieces[place]))
            portions.append(tokens[max(begin - starts[place], 0) : stop - starts[place]])
        begun = starts[first + 1 : last + 1] - begin
        row = next_token_row(np.concatenate(portions).astype(np.int64), begun, self._dataset.ctx_len)
        return row, bool(begin > starts[first])

    def _order(self, number: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of a stream in pass `number`, [n], and where each begins on it, [n + 1] with its end."""
        known = self._orders.get(stream)
        if known is None or known[0] != number:
            pieces = self._members[stream]
            if len(pieces):
                permutation = Permutation(len(pieces), self._dataset.seed, number, stream)
                pieces = pieces[[permutation[i] for i in range(len(pieces))]]
            offsets = self._dataset.tokens.offsets
            starts = np.concatenate([[0], np.cumsum(offsets[pieces + 1] - offsets[pieces])])
            known = self._orders[stream] = (number, pieces, starts)
        return known[1:]

    def _piece(self, number: int, stream: int, piece: int) -> np.ndarray:
        """The tokens of a piece, as they are in pass `number`."""
        tokens, augmenter = self._dataset.tokens, self._dataset.augmenter
        if augmenter is None:
            return tokens[piece]
        sample = number * len(tokens) + piece
        if stream not in self._varied or self._varied[stream][0] != sample:
            [varied] = augmenter.vary([tokens[piece]], [NONE], sample)
            self._varied[stream] = (sample, varied)
        return self._varied[stream][1]


def entering(carried: State, batch: Batch) -> State:
    """The state of each document of a batch of streams, from that of each stream: only a piece that goes on has one."""
    edges = batch.edges
    return carried.rows(edges.rows).scatter(batch.cu_seqlens.numel() - 1, edges.documents)
