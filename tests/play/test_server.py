"""The server of the page: what it answers, and who waits for whom."""

import json
import math
import time
from itertools import product
from types import SimpleNamespace

import mido
import pytest

from rwkv_music.generation import fill
from rwkv_music.midi.events import DRUMS, parse_midi
from rwkv_music.midi.parts import Part, read_parts
from rwkv_music.play import examples, pieces, server, worker
from rwkv_music.play.requests import DENSITY, REGISTER, WriteRequest
from rwkv_music.play.server import Site
from rwkv_music.play.writing import Cancelled, write
from tests.midi.midi_files import file_of, make_midi, note
from tests.play.conftest import Client, midi_of, outside, random_model, running, wait_until


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


def test_old_pieces_are_dropped_when_memory_is_full(monkeypatch):
    store = pieces.Store(most_bytes=1000)
    numbers = [store.add(pieces.Piece(bytes(400), "", (), 1)) for _ in range(3)]
    assert [store.get(number) is not None for number in numbers] == [False, True, True]
