"""The page's server, in a thread of this process, with small models that have random weights."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mido
import numpy as np
import pytest
import uvicorn

from rwkv_music.generation import fill
from rwkv_music.midi.time import BarGrid
from rwkv_music.play import examples, server
from rwkv_music.play.server import Site, make_app
from rwkv_music.tokenizers.registry import make_codec
from tests.generation.test_completion import small_model
from tests.midi.test_cells import without_notes

CODEC = make_codec("multitrack")
TOKENS_PER_BAR = fill.TOKENS_PER_BAR


def random_model(name: str) -> SimpleNamespace:
    """Return a model as `play.models.Model` has it, with random weights."""
    model = small_model(CODEC.vocab_size)
    return SimpleNamespace(name=name, step=7, model=model, codec=CODEC, follow=lambda: False)


def midi_of(data: bytes) -> mido.MidiFile:
    return mido.MidiFile(file=io.BytesIO(data))


def outside(data: bytes, name: str, bars: range) -> list[list[tuple[int, dict]]]:
    """Return the events of each track of a file without the notes that start in some bars of the track `name`."""
    midi = midi_of(data)
    track = next(i for i, track in enumerate(midi.tracks) if track.name == name)
    channel = next(message.channel for message in midi.tracks[track] if message.type == "note_on")
    lines = BarGrid.from_midi(midi).lines(bars.stop)
    cells = {(track, channel): np.array([lines[bar : bar + 2] for bar in bars])}
    return without_notes(midi, cells)


class Client:
    """A client of a server that listens on a port of this computer."""

    def __init__(self, site: Site, port: int):
        self.site, self.port = site, port
        self.address = f"http://127.0.0.1:{port}"

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(
        self, method: str, path: str, body: bytes | Iterator[bytes] = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of an answer.

        The server does not read all of a body that is too large. The end of its answer can then be lost.
        """
        with contextlib.closing(self.connect()) as connection:
            with contextlib.suppress(ConnectionError):
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            try:
                content = answer.read()
            except (IncompleteRead, ConnectionError):
                assert answer.status == 413
                content = b""
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, content

    def post(self, path: str, tree: Any) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        body = json.dumps(tree).encode()
        status, _, answer = self.request("POST", path, body, {"Content-Type": "application/json"})
        return status, json.loads(answer)

    def upload(self, data: bytes, title: str = "piece") -> tuple[int, Any]:
        status, _, answer = self.request("POST", f"/api/pieces?title={title}", data)
        return status, json.loads(answer)

    def start_writing(self, tree: dict) -> tuple[HTTPConnection, HTTPResponse]:
        """Send a request to write, and return the connection and the answer, whose lines come as they are written."""
        connection = self.connect()
        connection.request("POST", "/api/write", json.dumps(tree).encode(), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def write(self, tree: dict) -> list[dict]:
        """Return the events of a request to write."""
        connection, answer = self.start_writing(tree)
        with contextlib.closing(connection):
            assert answer.status == 200, answer.read()
            return [json.loads(line) for line in answer]


@contextlib.contextmanager
def running(site: Site, host: str = "127.0.0.1") -> Iterator[Client]:
    """A context in which a server of a site runs."""
    listener = server._listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(site, host), log_level="error", timeout_graceful_shutdown=1)
    own = uvicorn.Server(config)
    thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Client(site, listener.getsockname()[1])
    finally:
        own.should_exit = True
        thread.join(timeout=20)


@pytest.fixture(scope="session", autouse=True)
def short_cells() -> Iterator[None]:
    """Cells of a few notes: random weights would fill each one up to the budget of its tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fill, "TOKENS_PER_BAR", 6)
        yield


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with running(Site([random_model("runs/a")])) as client:
        yield client


@pytest.fixture
def chorale(tmp_path: Path) -> Path:
    """Return a file of four named parts with 16 bars."""
    path = tmp_path / "chorale.mid"
    path.write_bytes(examples.example().data)
    return path


def wait_until(is_true, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.005)
