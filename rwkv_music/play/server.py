"""The web server of `python -m rwkv_music play`.

    GET  /                          the page and its files, which are read once at the start
    GET  /soundfont                 the SoundFont that is installed on the server, if any
    GET  /api/state                 models, controls, instruments
    POST /api/start                 {"kind": "example" | "blank"} -> a piece
    POST /api/pieces?title=TITLE    a MIDI file -> a piece
    GET  /api/pieces/ID             the piece
    GET  /api/pieces/ID/file        its MIDI file
    POST /api/write                 a request (requests.py) -> lines of JSON: position in the queue, notes, the result
    POST /api/choose                {"piece": ID}, the preferred candidate of a blind comparison -> models and votes

An invalid request gets a 4xx status and {"error": SENTENCE}. If a client closes the connection of /api/write, its
request is cancelled. No path or name in a request is used to open a file.
"""

import asyncio
import contextlib
import json
import socket
import sys
import webbrowser
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from os import environ
from pathlib import Path
from random import SystemRandom

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rwkv_music.errors import UserError, plural
from rwkv_music.midi.audio import SOUNDFONT_FOLDERS
from rwkv_music.midi.controls import CONTROLS
from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.general_midi import INSTRUMENTS
from rwkv_music.play import examples
from rwkv_music.play.guard import Guard, Refused, read_body
from rwkv_music.play.models import Model, load_models
from rwkv_music.play.pieces import MOST_UPLOAD_BYTES, Piece, Store, read_upload, view
from rwkv_music.play.requests import DENSITY, MOST_CANDIDATES, MOST_NEW_BARS, REGISTER, WriteRequest, parse_request
from rwkv_music.play.worker import Job, QueueFull, Worker
from rwkv_music.play.writing import write
from rwkv_music.tokenizers.multitrack_vocabulary import MAX_PARTS

MOST_JSON_BYTES = 64 << 10
MOST_UPLOADS = 4  # files that are received or parsed at the same time; others wait before their bodies are read
MOST_BALLOTS = 1_000
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
# SoundFonts that the page can play, in order of preference. Their sizes are 6 MB and 148 MB. A browser must load the
# whole file before it plays the first note.
SOUNDFONTS = ("TimGM6mb.sf2", "FluidR3_GM.sf2")


@dataclass
class Ballot:
    """The candidates of one blind comparison."""

    models: dict[str, int]  # the index of the model that wrote each piece, by id
    is_cast: bool = False


@dataclass
class Site:
    """The state of the server: models, pieces, votes and the files of the page."""

    models: list[Model]
    soundfont: Path | None = None
    store: Store = field(default_factory=Store)
    ballots: OrderedDict[str, Ballot] = field(default_factory=OrderedDict)  # by id of a candidate

    def __post_init__(self) -> None:
        self.tally = [0] * len(self.models)
        self.worker = Worker(self._follow)
        # Only one file is parsed at a time, so that many simultaneous uploads do not need much memory.
        self.parsing = anyio.CapacityLimiter(1)
        self.uploading = anyio.CapacityLimiter(MOST_UPLOADS)
        self.files = {path: content for path, content in _page_files()}

    def _follow(self) -> None:
        for model in self.models:
            model.follow()

    @property
    def is_blind(self) -> bool:
        return len(self.models) > 1

    # ---- reading ----

    async def file(self, request: Request) -> Response:
        found = self.files.get(request.url.path.removeprefix("/") or "index.html")
        if found is None:
            raise Refused(404, "This address does not exist: open the address that the server printed.")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "no-cache"})

    async def state(self, _request: Request) -> Response:
        models = [] if self.is_blind else [{"name": m.name, "step": m.step} for m in self.models]
        return JSONResponse(
            {
                "models": models,
                "blind": self.is_blind,
                "tally": self.votes(),
                "soundfont": self.soundfont and self.soundfont.stem,
                "waiting": self.worker.n_jobs,
                "controls": {CONTROLS[i].name: CONTROLS[i].classes for i in (DENSITY, REGISTER)},
                "instruments": [*INSTRUMENTS, "Drums"],
                "drums": DRUMS,
                "most": {
                    "upload": MOST_UPLOAD_BYTES,
                    "parts": MAX_PARTS,
                    "new_bars": MOST_NEW_BARS,
                    "candidates": MOST_CANDIDATES,
                },
            }
        )

    async def start(self, request: Request) -> Response:
        kinds: dict[object, Callable[[], Piece]] = {"example": examples.example, "blank": examples.blank}
        kind = (await _json(request)).get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            raise Refused(400, "The kind of piece is unknown: use example or blank.")
        return await self._opened(kinds[kind])

    async def upload(self, request: Request) -> Response:
        title = request.query_params.get("title", "")
        async with self.uploading:
            data = await read_body(request, MOST_UPLOAD_BYTES)
            return await self._opened(lambda: read_upload(data, title))

    async def _opened(self, make: Callable[[], Piece]) -> Response:
        def opened() -> bytes:
            piece = make()
            shown = view(piece)
            return _compact({"id": self.store.add(piece), **shown})

        body = await anyio.to_thread.run_sync(opened, limiter=self.parsing)
        return Response(body, media_type="application/json")

    def _piece(self, number: object) -> Piece:
        piece = self.store.get(number) if isinstance(number, str) else None
        if piece is None:
            raise Refused(404, "The server no longer has this piece: open the file again.")
        return piece

    async def piece(self, request: Request) -> Response:
        number = request.path_params["number"]
        piece = self._piece(number)

        def shown() -> bytes:
            return _compact({"id": number, **view(piece)})

        return Response(await anyio.to_thread.run_sync(shown, limiter=self.parsing), media_type="application/json")

    async def midi_file(self, request: Request) -> Response:
        piece = self._piece(request.path_params["number"])
        headers = {"Content-Disposition": "attachment"}  # the page names the file
        return Response(piece.data, media_type="audio/midi", headers=headers)

    async def font(self, _request: Request) -> Response:
        if self.soundfont is None:
            raise Refused(404, "The server has no SoundFont: install timgm6mb-soundfont on it and restart `play`.")
        return FileResponse(self.soundfont, media_type="application/octet-stream")

    # ---- writing ----

    async def write(self, request: Request) -> Response:
        asked = await _json(request)
        piece = self._piece(asked.get("piece"))
        to_write = parse_request(asked, piece)
        job = Job(lambda job: self._write(job, piece, to_write))
        self.worker.submit(job)
        return StreamingResponse(self._events(job, request), media_type="application/x-ndjson")

    async def _events(self, job: Job, request: Request) -> AsyncIterator[bytes]:
        """Yield the events of a job. If the client disconnects, the job is cancelled."""

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.worker.cancel(job)
            job.events.put_nowait(None)

        watching = asyncio.create_task(watch())
        try:
            while (event := await job.events.get()) is not None:
                yield _compact(event) + b"\n"
        finally:
            watching.cancel()
            self.worker.cancel(job)

    def _write(self, job: Job, piece: Piece, request: WriteRequest) -> dict:
        """Write the candidates, and return the result for the page. Runs in the worker's thread."""
        order = [0] * request.candidates
        if self.is_blind:
            order = SystemRandom().sample(range(len(self.models)), len(self.models))
        first, written = 0, []
        while first < len(order):
            model = self.models[order[first]]
            own = replace(request, candidates=1 if self.is_blind else request.candidates)

            def on_notes(
                candidate: int, bar: int, part: int, notes: list[int], is_complete: bool, first: int = first
            ) -> None:
                event = {"candidate": first + candidate, "bar": bar, "part": part, "notes": notes}
                job.send({**event, "complete": is_complete})

            written += write(model, piece, own, on_notes, lambda: job.is_cancelled)
            first += own.candidates
        changed = {part for _, part in request.cells}
        candidates = [{"id": self.store.add(new), **view(new, changed)} for new in written]
        if self.is_blind:
            ballot = Ballot({one["id"]: index for one, index in zip(candidates, order, strict=True)})
            self.ballots.update(dict.fromkeys(ballot.models, ballot))
            while len(self.ballots) > MOST_BALLOTS:
                self.ballots.popitem(last=False)
        step = None if self.is_blind else self.models[0].step
        return {"candidates": candidates, "cells": sorted(request.cells), "step": step}

    async def choose(self, request: Request) -> Response:
        number = (await _json(request)).get("piece")
        ballot = self.ballots.get(number) if isinstance(number, str) else None
        if ballot is None:
            raise Refused(404, "The server has no comparison with this piece: write new candidates.")
        if not ballot.is_cast:
            ballot.is_cast = True
            self.tally[ballot.models[number]] += 1
        names = {one: self.models[index].name for one, index in ballot.models.items()}
        return JSONResponse({"names": names, "tally": self.votes()})

    def votes(self) -> list[list]:
        return [[m.name, n] for m, n in zip(self.models, self.tally, strict=True)] if self.is_blind else []


def make_app(site: Site, host: str = "127.0.0.1") -> Guard:
    """Return the ASGI application."""

    async def answer(_request: Request, error: Exception) -> Response:
        if isinstance(error, Refused):
            # The rest of a body that is too large or too slow would otherwise be received and discarded.
            headers = {"Connection": "close"} if error.status in (408, 413) else None
            return JSONResponse({"error": error.sentence}, error.status, headers)
        if isinstance(error, QueueFull):
            return JSONResponse({"error": str(error)}, 429)
        if isinstance(error, UserError):
            return JSONResponse({"error": str(error)}, 422)
        if isinstance(error, HTTPException):
            sentence = {
                404: "This address does not exist: open the address that the server printed.",
                405: "This address does not accept this method: use GET or POST, as play/server.py lists.",
            }
            return JSONResponse(
                {"error": sentence.get(error.status_code, "The request is invalid.")}, error.status_code
            )
        return JSONResponse({"error": "There was an error in the program: see the terminal of the server."}, 500)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(site.worker.stop)

    app = Starlette(
        routes=[
            Route("/soundfont", site.font),
            Route("/api/state", site.state),
            Route("/api/start", site.start, methods=["POST"]),
            Route("/api/pieces", site.upload, methods=["POST"]),
            Route("/api/pieces/{number}", site.piece),
            Route("/api/pieces/{number}/file", site.midi_file),
            Route("/api/write", site.write, methods=["POST"]),
            Route("/api/choose", site.choose, methods=["POST"]),
            Route("/{path:path}", site.file),
        ],
        exception_handlers={kind: answer for kind in (Refused, UserError, HTTPException, Exception)},
        lifespan=lifespan,
    )
    return Guard(app, host)


async def _json(request: Request) -> dict:
    """Return the JSON object in a request's body."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "The Content-Type of the request is not application/json: set it.")
    body = await read_body(request, MOST_JSON_BYTES)
    try:
        tree = json.loads(body, parse_constant=lambda name: _not_json())
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise Refused(400, "The request is not a JSON object: send one.")
    return tree


def _not_json() -> None:
    raise ValueError("NaN and infinities are not JSON")


def _compact(tree: dict) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode()


def _page_files() -> Sequence[tuple[str, tuple[bytes, str]]]:
    """Return the path, the content and the type of each file of the page."""
    found = []

    def add(folder: resources.abc.Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                add(entry, f"{prefix}{entry.name}/")
            elif (suffix := Path(entry.name).suffix) in TYPES:
                found.append((prefix + entry.name, (entry.read_bytes(), TYPES[suffix])))

    add(resources.files("rwkv_music.play") / "page", "")
    return found


def find_soundfont() -> Path | None:
    """Return the path of an installed SoundFont that the page can play, or None if there is none."""
    paths = (Path(folder) / name for name in SOUNDFONTS for folder in SOUNDFONT_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def serve(
    models: list[Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    follow: bool = False,
    browser: bool = True,
) -> None:
    """Load the models and serve the page until Ctrl-C. Raises UserError if a model or the port cannot be used."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port is {port}: choose 0 to {(1 << 16) - 1}.")
    site = Site(load_models(models, follow), find_soundfont())
    listener = _listen(host, port)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{listener.getsockname()[1]}/"
    print(f"Play at {address} (Ctrl-C stops the server).", flush=True)
    if browser and (sys.platform in ("darwin", "win32") or environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(address)
    config = uvicorn.Config(make_app(site, host), log_level="warning", timeout_graceful_shutdown=2, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        site.worker.stop()
    for name, votes in site.votes():
        print(f"{name}: preferred {plural(votes, 'time')}")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot listen on {host}, port {port} ({reason}): choose another --port or --host.") from error
