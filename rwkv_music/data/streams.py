"""Document streams for truncated backpropagation through time (TBPTT).

Each row of a batch belongs to a stream, a sequence of whole pieces without gaps. Window w of a stream consists of its
tokens w T to (w + 1) T - 1, where T is the length of a window. Row i of window w + 1 therefore continues row i of
window w. A piece that does not end in a window continues in the same row of the next window. A window can contain
several short pieces.

Notable choices:
- Pieces are assigned to streams once: in order of decreasing length, each piece goes to the shortest stream. The
  lengths of two streams therefore differ by at most the length of one piece. In each pass, the pieces of a stream have
  a random order that depends on seed, pass and stream.
- All streams start a pass at the same window, so a window can be computed from its number alone. Shorter streams are
  padded with tokens that have no target.
- The augmentation of a piece (see augment.py) depends on the piece and the pass. It is the same in all windows of the
  piece.
"""

import heapq

import numpy as np
import torch

from rwkv_music.config import IGNORE_INDEX
from rwkv_music.data.dataset import Batch, MusicDataset, StreamEdges, make_batch
from rwkv_music.data.permutation import Permutation
from rwkv_music.data.tasks import Row, next_token_row
from rwkv_music.errors import UserError, plural
from rwkv_music.model_v8 import State


class DocumentStreams:
    """The pieces of a split as `n_streams` streams, read in windows of the dataset's `ctx_len` tokens.

    The task of the dataset must be next-token prediction. A pass is padded to a multiple of `windows_per_step` windows.
    Raises UserError if a training split has fewer pieces than streams.
    """

    def __init__(self, dataset: MusicDataset, n_streams: int, windows_per_step: int = 1) -> None:
        self._dataset, self.n_streams = dataset, n_streams
        lengths = np.diff(dataset.tokens.offsets)
        if dataset.split == "train" and len(lengths) < n_streams:
            raise UserError(
                f"--tbptt needs at least one piece per row of the batch, but {dataset.data_dir} has "
                f"{plural(len(lengths), 'training piece')} for {n_streams} rows: choose a smaller --batch_size."
            )
        members: list[list[int]] = [[] for _ in range(n_streams)]
        heap = [(0, stream) for stream in range(n_streams)]  # (tokens, stream)
        for piece in np.argsort(-lengths, kind="stable").tolist():
            tokens, stream = heap[0]
            members[stream].append(piece)
            heapq.heapreplace(heap, (tokens + int(lengths[piece]), stream))
        self._members = [np.array(pieces, np.int64) for pieces in members]
        windows = -(-max(heap)[0] // dataset.ctx_len)
        self.windows_per_pass = -(-windows // windows_per_step) * windows_per_step  # a pass reads every token once
        self.documents_per_row = 1 + dataset.ctx_len / float(lengths.mean())  # on average, including partial documents
        self._orders: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}  # stream: (pass, pieces, their starts)
        self._varied: dict[int, tuple[int, np.ndarray]] = {}  # stream: (sample number of a piece, its tokens)

    def batch(self, window: int, start: int = 0, stop: int | None = None) -> Batch:
        """Return window number `window` of the streams start..stop - 1, with `edges`.

        Window numbers continue from pass to pass. If there are no streams (start == stop), return one row of padding
        without targets, and empty `edges`.
        """
        streams = range(start, self.n_streams if stop is None else stop)
        rows = [self._row(window, stream) for stream in streams] or [_padding()]
        T = self._dataset.ctx_len
        input_ids = np.full((len(rows), T), self._dataset.pad_id, np.int64)
        targets = np.full((len(rows), T), IGNORE_INDEX, np.int64)
        for i, (row, _) in enumerate(rows):
            input_ids[i, : len(row.input_ids)] = row.input_ids
            targets[i, : len(row.targets)] = row.targets
        counts = np.array([len(row.starts) for row, _ in rows])
        last = counts.cumsum() - 1
        continuing = np.flatnonzero([continues for _, continues in rows])
        ending = np.arange(len(streams))
        edges = StreamEdges(
            *(torch.from_numpy(x) for x in (continuing, (last - counts + 1)[continuing], ending, last[ending]))
        )
        starts = [i * T + row.starts for i, (row, _) in enumerate(rows)]
        return self._dataset.checked(make_batch(input_ids, targets, starts, edges))

    def _row(self, window: int, stream: int) -> tuple[Row, bool]:
        """Return a stream's window, and whether its first token continues a piece from the window before."""
        pass_number, window = divmod(window, self.windows_per_pass)
        pieces, starts = self._order(pass_number, stream)
        begin = window * self._dataset.ctx_len
        stop = min(begin + self._dataset.ctx_len + 1, int(starts[-1]))  # one more token: the last target
        if begin >= stop:
            return _padding()
        first, last = np.searchsorted(starts, [begin, stop - 1], side="right") - 1
        parts = []
        for i in range(first, last + 1):
            tokens = self._piece(pass_number, stream, int(pieces[i]))
            parts.append(tokens[max(begin - starts[i], 0) : stop - starts[i]])
        new_starts = starts[first + 1 : last + 1] - begin
        row = next_token_row(np.concatenate(parts).astype(np.int64), new_starts, self._dataset.ctx_len)
        return row, bool(begin > starts[first])

    def _order(self, pass_number: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pieces of a stream in one pass, int64 [n], and their boundaries in the stream, int64 [n + 1]."""
        cached = self._orders.get(stream)
        if cached is None or cached[0] != pass_number:
            pieces = self._members[stream]
            if len(pieces):
                permutation = Permutation(len(pieces), self._dataset.seed, pass_number, stream)
                pieces = pieces[[permutation[i] for i in range(len(pieces))]]
            offsets = self._dataset.tokens.offsets
            starts = np.concatenate([[0], np.cumsum(offsets[pieces + 1] - offsets[pieces])])
            cached = self._orders[stream] = (pass_number, pieces, starts)
        return cached[1:]

    def _piece(self, pass_number: int, stream: int, piece: int) -> np.ndarray:
        """Return the tokens of a piece, augmented for one pass."""
        tokens, augmenter = self._dataset.tokens, self._dataset.augmenter
        if augmenter is None:
            return tokens[piece]
        sample = pass_number * len(tokens) + piece
        if stream not in self._varied or self._varied[stream][0] != sample:
            [varied] = augmenter.vary([tokens[piece]], sample)
            self._varied[stream] = (sample, varied)
        return self._varied[stream][1]


def _padding() -> tuple[Row, bool]:
    """Return a window without tokens, and False, because it does not continue a piece."""
    return Row(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(1, np.int64)), False


def document_states(stream_states: State, batch: Batch) -> State:
    """Return the initial state of each document of a batch, as a state of D rows.

    The state of a document that continues a piece is the row of `stream_states` for its stream. All others are zero.
    """
    edges = batch.edges
    return stream_states.rows(edges.rows).scatter(batch.cu_seqlens.numel() - 1, edges.documents)


def final_states(document_states: State, batch: Batch, n_streams: int) -> State:
    """Return the state of each stream after a batch, given the final state of each document of the batch.

    With context parallelism, the states of streams whose rows end on other ranks are zero; see `sum_over_ranks`.
    """
    states = document_states.rows(batch.edges.last)
    return states if batch.context is None else states.scatter(n_streams, batch.edges.ending)


def sum_over_ranks(states: State, batch: Batch) -> State:
    """Return the sum of `states` over the ranks that hold the parts of a batch. Collective.

    Without context parallelism, return `states`.
    """
    return states if batch.context is None else State(*map(batch.context.sum, states))
