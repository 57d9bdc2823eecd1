"""The server of the page: what it answers, what it refuses, and who waits for whom."""

import contextlib
import json
import math
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from http.client import HTTPResponse
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import mido
import pytest

from rwkv_music.generation import fill
from rwkv_music.midi.events import DRUMS, parse_midi
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.play import examples, guard, pieces, server, worker
from rwkv_music.play.guard import HEADERS, POLICY
from rwkv_music.play.requests import DENSITY, REGISTER, WriteRequest
from rwkv_music.play.server import Site
from rwkv_music.play.writing import Cancelled, write
from tests.midi.midi_files import file_of, make_midi, note, odd_piece
from tests.play.conftest import Client, midi_of, outside, random_model, running


def download(client: Client, number: str) -> bytes:
    status, headers, data = client.request("GET", f"/api/pieces/{number}/file")
    assert status == 200 and headers["content-type"] == "audio/midi"
    return data


# ---- writing ----


def test_a_fill_writes_its_cells_and_nothing_else(client, chorale):
    original = chorale.read_bytes()
    _, piece = client.upload(original)
    assert download(client, piece["id"]) == original
    assert [part["name"] for part in piece["parts"]] == ["Soprano", "Alto", "Tenor", "Bass"]
    request = {"piece": piece["id"], "action": "fill", "bars": [4, 7], "parts": [1], "candidates": 2, "density": "high"}
    *events, last = client.write(request)
    cells = [(e["candidate"], e["bar"], e["part"]) for e in events if e.get("complete")]
    assert sorted(cells) == [(candidate, bar, 1) for candidate in range(2) for bar in range(4, 8)]
    assert len(last["done"]["candidates"]) == 2
    for candidate in last["done"]["candidates"]:
        after = download(client, candidate["id"])
        assert outside(after, "Alto", range(4, 8)) == outside(original, "Alto", range(4, 8))
        # The page gets the notes of the part that changed.
        assert ["notes" in part for part in candidate["parts"]] == [False, True, False, False]


def test_notes_are_reported_before_their_cell_is_complete(client, monkeypatch):
    _, piece = client.post("/api/start", {"kind": "example"})
    request = {"piece": piece["id"], "action": "fill", "bars": [4, 7], "parts": [1], "candidates": 2}

    def reports(every_s: float) -> list[list[dict]]:
        """Return the reports of each candidate."""
        monkeypatch.setattr("rwkv_music.play.writing.NOTES_EVERY_S", every_s)
        events = client.write(request)
        return [[event for event in events if event.get("candidate") == candidate] for candidate in range(2)]

    for single, late in zip(reports(0), reports(math.inf), strict=True):
        early = [event["notes"] for event in single if not event["complete"]]
        assert len(early) > 4 and all(len(notes) == 4 for notes in early)  # each has one note of four numbers
        assert not any(event["notes"] for event in single if event["complete"])
        assert [event["complete"] for event in late] == [False, True, True, True, True]
        assert len(late[0]["notes"]) == 4  # the first note is never delayed
        for own in (single, late):
            assert [event["bar"] for event in own if event["complete"]] == [4, 5, 6, 7]
        assert sum(early, []) == sum((event["notes"] for event in late), [])


@pytest.mark.parametrize(
    "request_, n_bars, n_parts",
    [
        ({"action": "continue", "new_bars": 1}, 17, 4),
        ({"action": "continue", "new_bars": 2, "parts": [0, 3]}, 18, 4),
        ({"action": "add", "program": 128, "density": "low", "register": "high", "bars": [0, 1]}, 16, 5),
        ({"action": "add", "program": 42, "bars": [2, 3], "register": "low", "temperature": 0}, 16, 5),
    ],
)
def test_a_piece_is_continued_and_accompanied(request_, n_bars, n_parts, client):
    _, piece = client.post("/api/start", {"kind": "example"})
    before = midi_of(download(client, piece["id"]))
    (new,) = client.write({"piece": piece["id"], **request_})[-1]["done"]["candidates"]
    assert len(new["bars"]) - 1 == n_bars
    assert len(new["parts"]) in (n_parts, n_parts - (request_["action"] == "add"))  # the model may write no notes
    after = midi_of(download(client, new["id"]))
    for own, other in zip(before.tracks, after.tracks, strict=False):
        events, more = list(own)[:-1], list(other)
        assert more[: len(events)] == events


def test_a_blank_piece_is_written_and_written_again(client):
    _, piece = client.post("/api/start", {"kind": "blank"})
    assert [len(part["notes"]) for part in piece["parts"]] == [0] and len(piece["bars"]) == 9
    (first,) = client.write({"piece": piece["id"], "action": "fill", "bars": [0, 7], "parts": [0]})[-1]["done"][
        "candidates"
    ]
    assert first["parts"][0]["notes"] and first["parts"][0]["name"] == "Piano"
    # A part keeps its place and its track when all of its notes are gone.
    kept = pieces.Piece(download(client, piece["id"]), "Untitled", client.site.store.get(first["id"]).parts, 8)
    again = client.write({"piece": client.site.store.add(kept), "action": "continue", "new_bars": 2})[-1]
    assert len(again["done"]["candidates"][0]["parts"]) == 1


def test_controls_reach_the_model_under_the_numbers_that_it_uses(client, monkeypatch):
    """The model counts the parts that have notes first. Fails if the controls of the page's parts are not renumbered:
    drums have no register.
    """
    empty = [(0, mido.Message("program_change", program=7))]
    data = file_of(make_midi(empty, note(0, 480, 36, channel=9), note(0, 480, 40, channel=1)))
    found, _ = read_parts(parse_midi(data))
    piece = pieces.Piece(data, "empty first", (Part(0, 0, 7), *found), 1)
    calls = []

    def captured(model, codec, midi, excerpt, parts, holes, *, controls, **options):
        calls.append(([part.program for part in parts], sorted(holes), controls, options["sampling"].temperature))
        return fill.fill_cells(model, codec, midi, excerpt, parts, holes, controls=controls, **options)

    monkeypatch.setattr("rwkv_music.play.writing.fill_cells", captured)
    request = {"piece": client.site.store.add(piece), "action": "fill", "bars": [0, 0], "temperature": 0.5}
    request |= {"parts": [0, 2], "density": "high", "register": "low"}
    *cells, last = client.write(request)
    assert "done" in last and sorted(cell["part"] for cell in cells if cell.get("complete")) == [0, 2]
    both = {DENSITY: 2, REGISTER: 0}
    assert calls == [([DRUMS, 0, 7], [(0, 2), (0, 3)], {1: {DENSITY: 2}, 2: both, 3: both}, 0.5)]


def test_no_comparison_exists_with_one_model(client):
    _, piece = client.post("/api/start", {"kind": "blank"})
    assert client.post("/api/choose", {"piece": piece["id"]}) == (
        404,
        {"error": "The server has no comparison with this piece: write new candidates."},
    )


def test_two_models_are_compared_blind(monkeypatch):
    orders = iter([[0, 1], [1, 0]] * 4)
    monkeypatch.setattr(server, "SystemRandom", lambda: SimpleNamespace(sample=lambda models, n: next(orders)))
    with running(Site([random_model("runs/a"), random_model("runs/b")])) as client:
        _, piece = client.post("/api/start", {"kind": "example"})
        _, _, state = client.request("GET", "/api/state")
        state = json.loads(state)
        assert state["blind"] and state["models"] == [] and state["tally"] == [["runs/a", 0], ["runs/b", 0]]
        firsts = set()
        for round_ in range(1, 9):
            request = {"piece": piece["id"], "action": "fill", "bars": [0, 0], "parts": [0]}
            done = client.write(request)[-1]["done"]
            numbers = [one["id"] for one in done["candidates"]]
            assert len(numbers) == 2 and "runs/" not in json.dumps(done)
            status, answer = client.post("/api/choose", {"piece": numbers[0]})
            assert status == 200 and sorted(answer["names"].values()) == ["runs/a", "runs/b"]
            firsts.add(answer["names"][numbers[0]])
            again = client.post("/api/choose", {"piece": numbers[1]})[1]["tally"]
            assert again == answer["tally"] and sum(count for _, count in again) == round_  # one vote for each
        assert firsts == {"runs/a", "runs/b"}


# ---- the queue ----


@pytest.fixture
def held(client, monkeypatch):
    """The client, and a function that lets held jobs go on. The worker stops in front of every cell until then."""
    released = []
    send = worker.Job.send

    def slow(job, event):
        send(job, event)
        while event and "candidate" in event and not released and not job.is_cancelled:
            time.sleep(0.002)

    monkeypatch.setattr(worker.Job, "send", slow)
    yield client, lambda: released.append(True)
    released.append(True)
    wait_until(lambda: client.site.worker.n_jobs == 0)


def wait_until(is_true, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < limit
        time.sleep(0.005)


def one_bar(client: Client) -> dict:
    _, piece = client.post("/api/start", {"kind": "example"})
    return {"piece": piece["id"], "action": "fill", "bars": [3, 3], "parts": [2]}


def test_twenty_clients_are_answered_in_turn(held, monkeypatch):
    client, release = held
    submitted, started = [], []
    submit, run = worker.Worker.submit, worker.Job.run
    monkeypatch.setattr(worker.Worker, "submit", lambda self, job: (submitted.append(job), submit(self, job)))
    monkeypatch.setattr(worker.Job, "run", lambda job: (started.append(job), run(job)))
    request = one_bar(client)
    opened = []
    for i in range(20):
        opened.append(client.start_writing(request))
        wait_until(lambda i=i: client.site.worker.n_jobs == i + 1)
    release()
    seen = []
    for connection, answer in opened:
        events = [json.loads(line) for line in answer]
        connection.close()
        seen.append([event["position"] for event in events if "position" in event])
        assert "done" in events[-1]
    assert len(submitted) == 20 and started == submitted
    for i, positions in enumerate(seen):
        assert positions[0] == (i if i else 0) and positions[-1] == 0
        assert positions == sorted(positions, reverse=True)


def test_a_cancelled_request_ends_at_its_first_cell():
    """Fails if the model goes on to the other 63 cells."""
    reported = []
    with pytest.raises(Cancelled):
        write(
            random_model("runs/a"),
            examples.example(),
            WriteRequest(frozenset(product(range(16), range(4)))),
            lambda *cell: reported.append(cell[:3]),
            lambda: bool(reported),
        )
    assert reported == [(0, 0, 0)]


def test_each_cell_is_reported_before_the_next_one_is_written():
    log = []
    cells = list(product(range(8), range(4)))  # of one window of the model

    def progress() -> bool:
        if log[-1:] != ["progress"]:
            log.append("progress")
        return False

    write(
        random_model("runs/a"),
        examples.example(),
        WriteRequest(frozenset(cells)),
        lambda _, bar, part, notes, is_complete: is_complete and log.append((bar, part)),
        progress,
    )
    assert [entry for entry in log if entry != "progress"] == cells
    assert log[:-1:2] == ["progress"] * len(cells)


def test_a_client_that_leaves_frees_its_place(held):
    client, release = held
    request = one_bar(client)
    opened = []
    for i in range(3):
        opened.append(client.start_writing(request))
        wait_until(lambda i=i: client.site.worker.n_jobs == i + 1)
    for i in (1, 0):  # one that waits, then the one that is written
        opened[i][1].close()
        opened[i][0].close()
        wait_until(lambda i=i: client.site.worker.n_jobs == 1 + i)
    release()
    assert "done" in [json.loads(line) for line in opened[2][1]][-1]


def test_a_full_queue_refuses(held, monkeypatch):
    client, _ = held
    monkeypatch.setattr(worker, "MOST_WAITING", 2)
    request = one_bar(client)
    opened = [client.start_writing(request)]
    assert any("candidate" in json.loads(line) for line in opened[0][1])  # it is running and no longer waiting
    for i in range(1, 3):
        opened.append(client.start_writing(request))
        wait_until(lambda i=i: client.site.worker.n_jobs == i + 1)
    status, answer = client.post("/api/write", request)
    assert status == 429 and "waiting" in answer["error"]


def test_an_error_of_the_program_ends_one_request_only(client, monkeypatch, capsys):
    monkeypatch.setattr("rwkv_music.play.server.write", lambda *_: 1 / 0)
    events = client.write(one_bar(client))
    assert "terminal of the server" in events[-1]["error"] and "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.undo()
    assert "done" in client.write(one_bar(client))[-1]


def test_an_error_between_requests_does_not_stop_the_worker(capsys):
    model = random_model("runs/a")
    model.follow = lambda: 1 / 0
    with running(Site([model])) as client:
        assert "done" in client.write(one_bar(client))[-1]
    assert "ZeroDivisionError" in capsys.readouterr().err


# ---- what is refused ----


@pytest.mark.parametrize(
    "headers, is_refused",
    [
        ({}, False),
        ({"Host": "localhost:{port}"}, False),
        ({"Host": "evil.example:{port}"}, True),
        ({"Host": "127.0.0.1.evil.example"}, True),
        ({"Host": "10.0.0.1:{port}"}, True),
        ({"Host": ""}, True),
        ({"Origin": "http://127.0.0.1:{port}"}, False),
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "null"}, True),
        ({"Origin": "http://127.0.0.1:1"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
    ],
)
def test_other_names_and_other_sites_are_refused(headers, is_refused, client):
    headers = {name: value.format(port=client.port) for name, value in headers.items()}
    for method, path in (("GET", "/"), ("GET", "/api/state"), ("POST", "/api/start")):
        body = b'{"kind":"blank"}' if method == "POST" else b""
        status, answered, _ = client.request(method, path, body, {"Content-Type": "application/json", **headers})
        assert status == (403 if is_refused else 200), (method, path)
        assert {name: answered.get(name.lower()) for name in HEADERS} == HEADERS


def test_a_server_for_all_addresses_refuses_foreign_names():
    with running(Site([random_model("runs/a")]), "0.0.0.0") as client:
        status = {host: client.request("GET", "/", headers={"Host": host})[0] for host in ("10.0.0.1", "evil.example")}
    assert status == {"10.0.0.1": 200, "evil.example": 403}


def test_the_page_has_no_inline_scripts_and_names_no_other_host(client):
    assert "unsafe" not in POLICY
    for path, (content, kind) in client.site.files.items():
        text = content.decode()
        if path.startswith("vendor/"):  # its comments name their sources
            continue
        assert "https://" not in text and "http://" not in text.replace("http://www.w3.org/2000/svg", ""), path
        if "html" in kind:
            assert text.count("<script") == text.count('<script type="module" src="/') and " style=" not in text
            assert not any(f" on{event}=" in text for event in ("click", "load", "error", "input", "change"))


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/server.py", "/api/pieces/..%2f..%2fetc%2fpasswd/file", "/server.py",
     "//etc/passwd", "/api/pieces/x/../../../etc/passwd", "/main.js%00", "/page/main.js",
     "/%2e%2e/server.py", "/..%2fserver.py"],
)  # fmt: skip
def test_no_path_reaches_the_file_system(path, client):
    opened, is_over = [], []

    def audit(event, args) -> None:  # a hook cannot be removed
        if event == "open" and not is_over:
            opened.append(args[0])

    sys.addaudithook(audit)
    try:
        assert client.request("GET", path)[0] == 404
    finally:
        is_over.append(True)
    assert opened == []


def test_the_synthesizer_is_the_published_one(client):
    published = client.site.files["vendor/spessasynth_core-4.3.22/index.js"][0].replace(
        b"./stb-vorbis.js", b"stb-vorbis", 1
    )
    assert sha256(published).hexdigest() == "a94f0bfcc43339d9d3a80a67eaa16178ed26d30283892e836fcd472c2845975b"


def test_the_soundfont_of_the_computer_is_served(client, tmp_path, monkeypatch):
    assert client.request("GET", "/soundfont")[0] == 404
    folders = [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setattr(server, "SOUNDFONT_FOLDERS", [str(folder) for folder in folders])
    assert server.find_soundfont() is None
    for folder, name in zip(folders, reversed(server.SOUNDFONTS), strict=True):
        folder.mkdir()
        (folder / name).write_bytes(name.encode())
    with running(Site([random_model("runs/a")], soundfont=server.find_soundfont())) as own:
        assert own.request("GET", "/soundfont")[::2] == (200, b"TimGM6mb.sf2")
        assert json.loads(own.request("GET", "/api/state")[2])["soundfont"] == "TimGM6mb"


def many_bars() -> bytes:
    """Return a small file whose last note is in bar 268,435,455 of one tick each."""
    body = b"\0\xff\x58\x04\x01\x06\x18\x08" + b"\xff\xff\xff\x7f\x90\x3c\x40\x01\x80\x3c\x40\0\xff\x2f\0"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 1) + b"MTrk" + struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "data, status, reason",
    [
        (b"", 422, "empty"),
        (b"<html>", 422, "not a MIDI file"),
        (file_of(make_midi([])), 422, "no notes"),
        (file_of(make_midi(note(0, 480, 60)))[:-9], 422, "choose a MIDI file"),
        (many_bars(), 422, "bars"),
        (b"MThd" + b"\0" * pieces.MOST_UPLOAD_BYTES, 413, "bytes"),
    ],
    ids=["empty", "html", "no notes", "cut", "many bars", "large"],
)
def test_uploads_that_cannot_be_read_are_refused_in_one_sentence(data, status, reason, client):
    answered, answer = client.upload(data)
    assert answered == status and reason in answer["error"] and "\n" not in answer["error"]


def test_an_upload_slightly_too_large_is_received_before_the_response(client):
    """Fails if the server closes the connection while a client still sends: the client can then lose the response."""
    body = bytes(pieces.MOST_UPLOAD_BYTES + 4)
    with contextlib.closing(socket.create_connection(("127.0.0.1", client.port), 20)) as connection:
        head = f"POST /api/pieces HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode())
        time.sleep(0.2)  # in which the server could respond
        connection.sendall(body)
        response = HTTPResponse(connection)
        response.begin()
        assert response.status == 413 and "bytes" in json.loads(response.read())["error"]


def test_a_large_upload_without_a_length_is_cut_off(client, capfd):
    """Fails if the server goes on receiving such a body."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", client.port), 20)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        head = f"POST /api/pieces HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"40000\r\n" + bytes(1 << 18) + b"\r\n"
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 12e6:
                connection.sendall(chunk)
                sent += 1 << 18
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    assert sent > pieces.MOST_UPLOAD_BYTES - len(chunk)
    assert client.request("GET", "/api/state")[0] == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def dense_file(n_bytes: int) -> bytes:
    """Return a file with as many notes as possible: three bytes for each note-on and for each note-off."""
    body = b"\0\x90\x3c\x40" + b"\x01\x3c\0\0\x3c\x40" * ((n_bytes - 40) // 6) + b"\0\xff\x2f\0"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(body)) + body


def memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def test_a_dense_upload_is_refused_with_little_memory_and_time(client):
    """Two of them at once need the memory of one: 2.8 million events with about 130 bytes each, and the bodies."""
    data = dense_file(pieces.MOST_UPLOAD_BYTES)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before, started = memory_bytes("VmRSS"), time.process_time()
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(client.upload, [data, data]))
    assert all(status == 422 and "events" in answer["error"] for status, answer in answers)
    assert memory_bytes("VmHWM") - before < 500e6
    assert time.process_time() - started < 20


def test_few_uploads_are_received_at_once(client, monkeypatch):
    """The others wait for a place. A client loses its place when it leaves or is too slow."""
    receiving = []
    read = server.read_body

    async def counted(request, limit):
        receiving.append(request)
        return await read(request, limit)

    monkeypatch.setattr(server, "read_body", counted)
    monkeypatch.setattr(guard, "BODY_S", 4)
    data = examples.example().data
    head = f"POST /api/pieces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(server.MOST_UPLOADS):
            slow.append(stack.enter_context(socket.create_connection(("127.0.0.1", client.port), 20)))
            slow[-1].sendall(head + data[:10])
        wait_until(lambda: len(receiving) == server.MOST_UPLOADS)
        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(client.upload, data) for _ in range(8)]
            wait_until(lambda: client.site.uploading.statistics().tasks_waiting == 8)
            assert client.request("GET", "/api/state")[0] == 200
            assert len(receiving) == server.MOST_UPLOADS
            slow[0].close()
            assert [answer.result()[0] for answer in answers] == [200] * 8
        for connection in slow[1:]:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
    assert len(receiving) == server.MOST_UPLOADS + 8


LARGE = "/api/pieces?title=large"


def random_request(draw: random.Random, known: str) -> tuple[str, str, bytes | Iterator[bytes], dict[str, str]]:
    """Return a request that a correct page would not send."""
    json_type = {"Content-Type": "application/json"}
    [kind] = draw.choices(range(7), [10, 10, 10, 10, 10, 1, 10])
    if kind == 0:  # damaged MIDI
        data = bytearray(odd_piece(draw.randrange(1000)))
        for _ in range(draw.randrange(1, 60)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        return "POST", "/api/pieces", bytes(data), {}
    if kind == 1:  # not JSON, or not an object
        body = draw.choice([b"", b"[]", b"{", b"null", b"NaN", b"\xff\xfe", b"[" * 9000, b'{"a":1e999}', b'"x"'])
        return "POST", draw.choice(["/api/write", "/api/start", "/api/choose"]), body, json_type
    if kind == 2:  # unknown ids and paths
        number = "".join(draw.choice("abcXYZ019-_%./") for _ in range(draw.randrange(1, 30)))
        path = draw.choice([f"/api/pieces/{number}", f"/api/pieces/{number}/file", f"/{number}", f"/api/{number}"])
        return "GET", path, b"", {}
    if kind == 3:  # wrong methods and types
        method = draw.choice(["PUT", "DELETE", "PATCH", "OPTIONS"])
        return method, draw.choice(["/", "/api/write", "/api/pieces"]), b"{}", json_type
    if kind == 4:
        return "POST", "/api/write", b'{"action":"fill"}', {"Content-Type": draw.choice(["text/plain", "", "x" * 500])}
    if kind == 5:  # 50 MB, with a length or in chunks
        return "POST", LARGE, draw.choice([bytes(50 << 20), iter([bytes(1 << 20)] * 50)]), {}
    odd = [
        None,
        -1,
        0,
        10**30,
        1.5,
        "x",
        "",
        [],
        [0],
        [0, 10**9],
        [-1, 0],
        [True, 1],
        {},
        True,
        float("1e308"),
        "\ud800",
    ]
    tree = {
        "piece": draw.choice([known, known, known, "x", 3, None]),
        "action": draw.choice(["fill", "continue", "add"]),
    }
    names = ["bars", "parts", "program", "new_bars", "density", "register", "temperature", "candidates", "seed", "zzz"]
    for name in draw.sample(names, draw.randrange(1, 6)):
        tree[name] = draw.choice(odd)
    return "POST", "/api/write", json.dumps(tree).encode(), json_type


def test_a_thousand_bad_requests_are_answered_without_a_traceback(client, monkeypatch, capfd):
    _, piece = client.post("/api/start", {"kind": "blank"})
    draw, counts, damaged = random.Random(5), Counter(), []
    with monkeypatch.context() as patch:
        patch.setattr("rwkv_music.play.server.write", lambda *_: [])  # of the few requests that are valid
        for _ in range(1000):
            method, path, body, headers = random_request(draw, piece["id"])
            status, _, answer = client.request(method, path, body, headers)
            counts[status] += 1
            assert status == 200 or 400 <= status < 500, (method, path, body, answer)
            assert (status == 413) == (path == LARGE)
            assert b"Traceback" not in answer and b'File "' not in answer
            if status != 200 and method != "OPTIONS" and (answer or status != 413):
                sentence = json.loads(answer)["error"]
                assert sentence.endswith(".") and "\n" not in sentence
            if status == 200 and path == "/api/pieces":
                damaged.append(json.loads(answer)["id"])
    assert sum(count for status, count in counts.items() if status != 200) > 700 and counts[413] > 5
    done = 0
    for number in draw.sample(damaged, 10):
        for action in ({"action": "fill", "bars": [0, 0], "parts": [0]}, {"action": "continue", "new_bars": 1}):
            last = client.write({"piece": number, **action})[-1]
            assert "done" in last or "error in the program" not in last["error"]
            done += "done" in last
    assert done > 10
    assert "Traceback" not in "".join(capfd.readouterr())
    assert client.request("GET", "/api/state")[0] == 200


def test_old_pieces_are_dropped_when_memory_is_full(monkeypatch):
    store = pieces.Store(most_bytes=1000)
    numbers = [store.add(pieces.Piece(bytes(400), "", (), 1)) for _ in range(3)]
    assert [store.get(number) is not None for number in numbers] == [False, True, True]
