"""Measure the speed, the memory and the robustness of `prepare`.

    python benchmarks/prepare.py MIDI_DIR... [--peer MIDI-LLM-tokenizer] [--only rates memory kills ...]

MIDI_DIR contains real music, such as `python -m rwkv_music corpus bach` writes. --peer is a checkout of
https://github.com/briansemrau/MIDI-LLM-tokenizer. All other inputs are derived from that music in a temporary folder.
Writes results/prepare.json.

- rates: files per second of CPU time on one core, for each tokenizer, for the peer's tokenizer, and for all of
  `prepare` without its start-up. The same files are processed in several rounds; ratios are medians over the rounds.
- memory: the peak resident size of `prepare` and of its worker for 1,000 and for 50,000 different files.
- containers: 100,000 different files from a folder, a .parquet and a .tar.zst, on all cores: files per second of CPU
  time, the share of the cores that is used, and the growth of the memory of all processes during the run.
- scores: all scores in the formats of music21's corpus, read from its files: how many are read, and why others are not.
- score_kills: `kills` for the scores of one folder of that corpus.
- kills: whether a dataset is the same, byte for byte, if `prepare` is killed and resumed 20 times at random moments.
- fuzz: whether each of 10,000 mutated files becomes a piece or is listed in rejected.jsonl."""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import mido
import psutil
import report

from rwkv_music.midi.events import DRUM_CHANNEL, RejectedMidi
from rwkv_music.prepare.pipeline import prepare
from rwkv_music.prepare.prepare_log import DATABASE
from rwkv_music.system import available_cores
from rwkv_music.tokenizers.registry import make_codec

MEASURED = ("multitrack", "midi-llm")
ROUNDS = 5
FILES_A_ROUND = 400
FEW, MANY = 1_000, 50_000
CONTAINED = 100_000
SAMPLE_S = 1.0  # between two measurements of memory
KILLS = 20
KILLED_FILES = 4_000
KILLED_CORPUS = "bach"
MUTATED_FILES = 10_000
PEERS_FILES = {
    "midi-llm": ("vocab_config.json", "tokenizer-midi.json"),
    "midi-llm-piano": ("vocab_config_piano.json", "tokenizer-midipiano.json"),
}
# A program that runs prepare and prints the peak memory of its own process and of its largest worker, in KiB. The peak
# of its own process is read from /proc, because getrusage would include the memory of the parent process.
PROGRAM = """
import json, resource, sys
from pathlib import Path
from rwkv_music.prepare.pipeline import prepare
if __name__ == "__main__":
    folder, out, tokenizer, resume, workers = sys.argv[1:]
    prepare([folder], out, tokenizer=tokenizer, workers=int(workers), resume=resume == "resume")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, worker = int(status["VmHWM"].split()[0]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps([own, worker]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="MIDI_DIR", help="folders of MIDI files")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="checkout of MIDI-LLM-tokenizer")
    parser.add_argument(
        "--out", type=Path, default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    options = parser.parse_args()
    sources = sorted(path for folder in options.folders for path in folder.rglob("*.mid"))
    figures = {"files": len(sources)}
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            figures[name] = PARTS[name](sources, Path(scratch), options.peer)
        print(name, json.dumps(figures[name], indent=2), flush=True)
        write(figures, options.out)


def write(figures: dict, out: Path) -> None:
    """Write the figures and keep the other parts of an earlier file; "machine" is that of the last run."""
    earlier = out / "prepare.json"
    if earlier.exists():
        figures = {**{k: v for k, v in json.loads(earlier.read_text()).items() if k != "machine"}, **figures}
    print(report.write("prepare", figures, out), flush=True)


def rates(sources: list[Path], scratch: Path, peer: Path | None) -> dict:
    chosen = random.Random(0).sample(sources, min(FILES_A_ROUND, len(sources)))
    folder = scratch / "in"
    folder.mkdir()
    for i, path in enumerate(chosen):
        shutil.copy(path, folder / f"{i:04d}.mid")
    files = sorted(folder.iterdir())
    steps: dict[str, Callable[[Path], object]] = {name: make_codec(name).encode for name in MEASURED}
    if peer:
        reference = Peer(peer, "midi-llm")
        steps["MIDI-LLM-tokenizer"] = lambda path: reference.ids(path.read_bytes())
    seconds = {name: [] for name in [*steps, *(f"prepare {tokenizer}" for tokenizer in MEASURED)]}
    for number in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.process_time()
            for path in files:
                with contextlib.suppress(RejectedMidi):
                    step(path)
            seconds[name].append(time.process_time() - start)
        for tokenizer in MEASURED:
            seconds[f"prepare {tokenizer}"].append(_whole_prepare(folder, scratch / "out", tokenizer))
        if number == 0:  # the first round is a warm-up
            seconds = {name: [] for name in seconds}
    rate = {name: round(len(files) / statistics.median(values), 1) for name, values in seconds.items()}
    theirs = "MIDI-LLM-tokenizer"
    ratios = {
        f"{ours} / {theirs}": round(
            statistics.median(b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)), 2
        )
        for ours in (("midi-llm", "prepare midi-llm") if peer else ())
    }
    ids = {name: _compare_ids(sources, Peer(peer, name)) for name in PEERS_FILES} if peer else {}
    return {"files_per_second_and_core": rate, "ratios": ratios, "same_ids_as_the_peer": ids}


def _whole_prepare(folder: Path, out: Path, tokenizer: str) -> float:
    """Return the CPU seconds of this process and its worker for `prepare`, without start-up."""
    empty = folder.parent / "one"
    empty.mkdir(exist_ok=True)
    shutil.copy(min(folder.iterdir()), empty)
    times = []
    for source in (empty, folder):
        start = _cpu_seconds()
        with contextlib.redirect_stderr(io.StringIO()):
            prepare([source], out, tokenizer=tokenizer, workers=1)
        times.append(_cpu_seconds() - start)
    return times[1] - times[0]


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Peer:
    """MIDI-LLM-tokenizer's own code, without its splitting at silences and its filter for short pieces."""

    def __init__(self, checkout: Path, name: str):
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        import midi_util

        configuration, tokenizer = PEERS_FILES[name]
        self.name, self.module = name, midi_util
        self.configuration = midi_util.VocabConfig.from_json(str(checkout / configuration))
        self.filter = midi_util.FilterConfig(False, float("inf"), -1.0)
        self.vocabulary = json.loads((checkout / tokenizer).read_text())["model"]["vocab"]

    def ids(self, data: bytes) -> list[int]:
        import mido

        text = self.module.convert_midi_to_str(self.configuration, self.filter, mido.MidiFile(file=io.BytesIO(data)))
        return [self.vocabulary[word] for word in text[0].lower().split()]


def _compare_ids(sources: list[Path], peer: Peer) -> dict:
    """Count the files on which the ids are the same, differ, or one of the two rejects the file."""
    codec, found = make_codec(peer.name), Counter()
    for path in sources:
        data = path.read_bytes()
        try:
            ours = codec.encode(data).tolist()
        except RejectedMidi as error:
            ours = error.reason
        try:
            theirs = peer.ids(data)
        except Exception:  # mido raises many types
            theirs = None
        if isinstance(ours, str):
            found[f"left out: {ours}"] += 1
            # Must be 0: rejected files in which the peer finds notes.
            found["of these with notes for the peer"] += bool(theirs) and codec.count_notes(theirs) > 0
        else:
            found["the same" if ours == theirs else "different"] += 1
    return dict(found)


def memory(sources: list[Path], scratch: Path, _peer: Path | None) -> dict:
    figures = {}
    folder = scratch / "in"
    for n in (FEW, MANY):
        _write_variations(sources, folder, n)
        start = time.perf_counter()
        own, worker = _run_prepare(folder, scratch / "out", "midi-llm")
        figures[f"{n} files"] = {
            "prepare_mib": round(own / 1024, 1),
            "worker_mib": round(worker / 1024, 1),
            "seconds": round(time.perf_counter() - start, 1),
        }
    few, many = figures.values()
    figures["growth"] = round(
        (many["prepare_mib"] + many["worker_mib"]) / (few["prepare_mib"] + few["worker_mib"]) - 1, 3
    )
    return figures


def containers(sources: list[Path], scratch: Path, _peer: Path | None) -> dict:
    folder = scratch / "in"
    _write_variations(sources, folder, CONTAINED)
    paths = {"folder": folder, ".parquet": _write_parquet(folder), ".tar.zst": _write_tar_zst(folder)}
    figures = {name: _watched(path, scratch / "out") for name, path in paths.items()}
    rate = {name: figure["files_per_core_second"] for name, figure in figures.items()}
    ratios = {f"{name} / folder": round(value / rate["folder"], 3) for name, value in rate.items() if name != "folder"}
    return figures | {"ratios": ratios}


def _write_parquet(folder: Path) -> Path:
    """Write the files of a folder as rows of a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("file", pa.string()), ("music", pa.binary())])
    path, files = folder.with_suffix(".parquet"), sorted(folder.iterdir())
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(files), 1000):
            group = files[start : start + 1000]
            rows = {"file": [file.name for file in group], "music": [file.read_bytes() for file in group]}
            writer.write_table(pa.table(rows, schema))
    return path


def _write_tar_zst(folder: Path) -> Path:
    """Write the files of a folder to an archive."""
    import zstandard

    path = folder.with_suffix(".tar.zst")
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for source in sorted(folder.iterdir()):
            archive.add(source, source.name)
    return path


def _watched(source: Path, out: Path) -> dict:
    """Run `prepare` on all cores; return its rate, its use of the cores and its memory over time."""
    workers, memory_mib, start = available_cores(), [], time.perf_counter()
    process = psutil.Popen(_command(source, out, "multitrack", resume=False, workers=workers), env=_environment())
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        with contextlib.suppress(psutil.Error):
            tree = [process, *process.children(recursive=True)]
            memory_mib.append(sum(one.memory_full_info().pss for one in tree) / 2**20)
        time.sleep(SAMPLE_S)
    seconds = time.perf_counter() - start
    if ended[1]:
        raise SystemExit(f"prepare failed on {source}")
    facts = json.loads((out / "dataset.json").read_text())
    files = sum(split["pieces"] for split in facts["splits"].values()) + sum(facts["rejected"].values())
    cpu_s = ended[2].ru_utime + ended[2].ru_stime
    fifth = max(1, len(memory_mib) // 5)
    early, late = statistics.median(memory_mib[fifth : 2 * fifth]), statistics.median(memory_mib[-2 * fifth : -fifth])
    return {
        "files": files,
        "rejected": facts["rejected"],
        "workers": workers,
        "seconds": round(seconds, 1),
        "files_per_core_second": round(files / cpu_s, 1),
        "share_of_cores": round(cpu_s / seconds / workers, 3),
        "memory_mib_in_second_fifth": round(early, 1),
        "memory_mib_in_fourth_fifth": round(late, 1),
        "growth": round(late / early - 1, 3),
    }


def scores(_sources: list[Path], scratch: Path, _peer: Path | None) -> dict:
    from music21.common import getCorpusFilePath

    found = _watched(Path(getCorpusFilePath()), scratch / "out")
    reasons: Counter[str] = Counter()
    for line in (scratch / "out" / "rejected.jsonl").read_text(encoding="utf-8").splitlines():
        reasons[json.loads(line)["reason"]] += 1
    return found | {"reasons": dict(reasons.most_common())}


def kills(sources: list[Path], scratch: Path, _peer: Path | None) -> dict:
    folder = scratch / "in"
    _write_variations(sources, folder, KILLED_FILES)
    return {"files": KILLED_FILES} | _killed(folder, scratch, "midi-llm", 1)


def score_kills(_sources: list[Path], scratch: Path, _peer: Path | None) -> dict:
    from music21.common import getCorpusFilePath

    folder = Path(getCorpusFilePath()) / KILLED_CORPUS
    return {"corpus": KILLED_CORPUS} | _killed(folder, scratch, "multitrack", available_cores())


def _killed(folder: Path, scratch: Path, tokenizer: str, workers: int) -> dict:
    """Run `prepare` and kill it KILLS times at random moments; return whether the dataset is that of a whole run."""
    start = time.perf_counter()
    _run_prepare(folder, scratch / "whole", tokenizer, workers=workers)
    whole_s = time.perf_counter() - start
    draws, at = random.Random(0), []
    command = _command(folder, scratch / "out", tokenizer, resume=True, workers=workers)
    killed = resumed_to_the_end = 0
    while killed < KILLS:
        process = subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=draws.uniform(0.3, whole_s))
            resumed_to_the_end += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            at.append(_sources_done(scratch / ".out.unfinished"))
        if (scratch / "out" / "dataset.json").exists() and killed < KILLS:
            assert _same(scratch / "whole", scratch / "out")
            shutil.rmtree(scratch / "out")
    _run_prepare(folder, scratch / "out", tokenizer, resume=True, workers=workers)
    return {
        "kills": killed,
        "finished_between_kills": resumed_to_the_end,
        "files_done_at_each_kill": at,
        "same_bytes": _same(scratch / "whole", scratch / "out"),
        "left_over": [path.name for path in scratch.iterdir() if path.name.startswith(".")],
    }


def fuzz(sources: list[Path], scratch: Path, _peer: Path | None) -> dict:
    folder = scratch / "in"
    folder.mkdir()
    draws = random.Random(0)
    small = [path for path in sources if path.stat().st_size < 20_000]
    for number in range(MUTATED_FILES):
        data = _mutated(draws.choice(small).read_bytes(), draws)
        (folder / f"{number:05d}.mid").write_bytes(data)
    figures = {}
    for tokenizer in ("multitrack", "midi-llm", "midi-llm-piano"):
        out = scratch / tokenizer
        facts = prepare([folder], out, tokenizer=tokenizer)
        named = [
            json.loads(line)["file"]
            for listing in ("pieces.jsonl", "rejected.jsonl")
            for line in (out / listing).read_text().splitlines()
        ]
        figures[tokenizer] = {
            "files": MUTATED_FILES,
            "each_named_once": sorted(named) == sorted(str(path) for path in folder.iterdir()),
            "pieces": sum(split["pieces"] for split in facts["splits"].values()),
            "rejected": facts["rejected"],
        }
    return figures


def _mutated(data: bytes, draws: random.Random) -> bytes:
    """Return `data` with random bytes changed, lost or repeated, either anywhere or only in tracks.

    In the second case, the lengths of the tracks are corrected.
    """
    if draws.randrange(4) == 0:
        return _mutated_bytes(data, draws)
    chunks, position = [], 0
    while position < len(data):
        end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
        chunks.append((data[position : position + 4], data[position + 8 : end]))
        position = end
    chosen = draws.randrange(1, len(chunks))
    change = draws.randrange(12)
    if change == 0:
        chunks.insert(chosen, draws.choice(chunks[1:]))
    elif change == 1:
        chunks[0] = (chunks[0][0], chunks[0][1][:4] + draws.randbytes(2))  # ticks per quarter note
    else:
        kind, content = chunks[chosen]
        chunks[chosen] = (kind, _mutated_bytes(content, draws))
    return b"".join(kind + len(content).to_bytes(4, "big") + content for kind, content in chunks)


def _mutated_bytes(data: bytes, draws: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(draws.choice([1, 1, 2, 4, 16])):
        at = draws.randrange(len(mutant) + 1)
        change = draws.randrange(8)
        if change == 0 and at < len(mutant):
            mutant[at] = draws.randrange(256)
        elif change == 1 and at < len(mutant):
            mutant[at] ^= 1 << draws.randrange(8)
        elif change == 2:
            del mutant[at : at + draws.randrange(1, 9)]
        elif change == 3:
            mutant[at:at] = draws.randbytes(draws.randrange(1, 9))
        elif change == 4:
            mutant[at:at] = mutant[at : at + draws.randrange(1, 200)]
        elif change == 5 and draws.randrange(4) == 0:
            del mutant[at:]
        elif change == 6:  # may be read as a delta time of up to 2^28 ticks
            mutant[at:at] = bytes([0x80 | draws.randrange(128) for _ in range(draws.randrange(1, 4))])
        elif change == 7:  # a whole event: controller, program, tempo, time signature or note
            mutant[at:at] = draws.choice(
                [
                    bytes([0, 0xB0 | draws.randrange(16), draws.choice([7, 11, 64, 120, 123]), draws.randrange(128)]),
                    bytes([0, 0xC0 | draws.randrange(16), draws.randrange(128)]),
                    b"\0\xff\x51\x03" + draws.randbytes(3),
                    b"\0\xff\x58\x04" + draws.randbytes(4),
                    bytes(
                        [draws.randrange(128), 0x90 | draws.randrange(16), draws.randrange(128), draws.randrange(128)]
                    ),
                ]
            )
    return bytes(mutant)


def _write_variations(sources: list[Path], folder: Path, n: int) -> None:
    """Write `n` different files: real music, transposed and with other velocities."""
    folder.mkdir(exist_ok=True)
    small = [path for path in sources if path.stat().st_size < 8_000]
    with ProcessPoolExecutor(available_cores()) as pool:
        for _ in pool.map(_write_variations_of, small, range(len(small)), repeat((folder, n, len(small)))):
            pass


def _write_variations_of(path: Path, which: int, rest: tuple[Path, int, int]) -> None:
    """Write the variations of one file, the one with index `which` of `n_sources` files."""
    folder, n, n_sources = rest
    source = mido.MidiFile(path)
    for number in range(which, n, n_sources):
        target = folder / f"{number:06d}.mid"
        if target.exists():
            continue
        copy = number // n_sources
        varied = mido.MidiFile(ticks_per_beat=source.ticks_per_beat)
        varied.tracks = [
            mido.MidiTrack(_varied(message, copy % 12 - 6, copy // 12) for message in track) for track in source.tracks
        ]
        varied.save(target)


def _varied(message: mido.messages.BaseMessage, shift: int, louder: int) -> mido.messages.BaseMessage:
    """Return a message with another pitch, unless it is a drum, and another velocity, unless it is 0."""
    if message.type not in ("note_on", "note_off"):
        return message
    pitch = (message.note + (0 if message.channel == DRUM_CHANNEL else shift)) % 128
    return message.copy(note=pitch, velocity=message.velocity and (message.velocity + louder) % 127 + 1)


def _run_prepare(folder: Path, out: Path, tokenizer: str, resume: bool = False, workers: int = 1) -> tuple[int, int]:
    """Run `prepare` in a process. Return the peak memory of this process and of its largest worker, in KiB."""
    command = _command(folder, out, tokenizer, resume, workers)
    done = subprocess.run(command, env=_environment(), check=True, stdout=subprocess.PIPE, text=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def _command(folder: Path, out: Path, tokenizer: str, resume: bool, workers: int = 1) -> list[str | Path]:
    program = out.parent / "program.py"  # a file, because worker processes import it
    program.write_text(PROGRAM)
    return [sys.executable, program, folder, out, tokenizer, "resume" if resume else "anew", str(workers)]


def _environment() -> dict[str, str]:
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _sources_done(unfinished: Path) -> int | None:
    """Return the number of sources that a killed run committed, read from a copy of its log."""
    if not (unfinished / DATABASE).exists():
        return None
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(unfinished, copy, dirs_exist_ok=True)
        with contextlib.closing(sqlite3.connect(Path(copy) / DATABASE)) as log:
            with contextlib.suppress(sqlite3.OperationalError):  # killed before the tables were created
                return log.execute("SELECT count(*) FROM sources").fetchone()[0]
    return None


def _same(one: Path, other: Path) -> bool:
    """Return whether two folders contain the same files with the same bytes."""
    names = {path.name for path in one.iterdir()}
    return names == {path.name for path in other.iterdir()} and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


PARTS = {
    "rates": rates,
    "memory": memory,
    "containers": containers,
    "scores": scores,
    "score_kills": score_kills,
    "kills": kills,
    "fuzz": fuzz,
}

if __name__ == "__main__":
    main()
