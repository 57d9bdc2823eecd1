"""The server of the page: which requests and uploads it refuses, and that they cost it little."""

import contextlib
import json
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
from pathlib import Path

import pytest

from rwkv_music.play import examples, guard, pieces, server
from rwkv_music.play.guard import HEADERS, POLICY
from rwkv_music.play.server import Site
from tests.midi.midi_files import file_of, make_midi, note, odd_piece
from tests.play.conftest import random_model, running, wait_until


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
