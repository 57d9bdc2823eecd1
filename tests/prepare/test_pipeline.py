"""`prepare`: complete, reproducible and resumable datasets; splits by content; rejected files; filters."""

import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import closing
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import mido
import numpy as np
import pytest

from rwkv_music.data.binidx import BinIdx
from rwkv_music.errors import UserError
from rwkv_music.midi.events import parse_midi
from rwkv_music.midi.parts import read_parts
from rwkv_music.midi.stats import compute_stats
from rwkv_music.prepare import pipeline
from rwkv_music.prepare.filters import Filters
from rwkv_music.prepare.pipeline import LISTINGS, PARTS, REPORT, prepare
from rwkv_music.prepare.prepare_log import DATABASE
from rwkv_music.tokenizers.registry import load_codec
from tests.midi.midi_files import file_of, make_midi, note


def map_in_process(setup, setup_args, items, *_limits):
    """Stand in for `map_in_order` without starting processes, which takes seconds."""
    work = setup(*setup_args)
    yield from map(work, items)


def quick_prepare(paths, out, map_in_order=map_in_process, **options) -> dict:
    """Call `prepare` without worker processes, and with the tokenizer that loads fastest."""
    with patch.object(pipeline, "map_in_order", map_in_order):
        return prepare(paths, out, **{"tokenizer": "midi-llm", **options})


def rejected(data: Path) -> dict[str, dict]:
    """Return the lines of rejected.jsonl by file name."""
    lines = [json.loads(line) for line in (data / "rejected.jsonl").read_text().splitlines()]
    return {Path(line["file"]).name: line for line in lines}


def accepted(data: Path) -> list[dict]:
    """Return the lines of pieces.jsonl."""
    return [json.loads(line) for line in (data / "pieces.jsonl").read_text().splitlines()]


def pieces(data: Path, split: str) -> set[bytes]:
    tokens = BinIdx(data / split)
    return {tokens[i].tobytes() for i in range(len(tokens))}


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_dataset_folder_is_complete_and_consistent(bach_data, bach_midi):
    facts = json.loads((bach_data / "dataset.json").read_text())
    codec = load_codec(bach_data / "tokenizer.json")
    assert sorted(path.name for path in bach_data.iterdir()) == sorted(["dataset.json", REPORT, *PARTS, *LISTINGS])
    assert facts["tokenizer"]["fingerprint"] == codec.fingerprint
    assert facts["files"] == 12 and facts["rejected"] == {}
    encoded = {codec.encode(path).tobytes() for path in bach_midi.iterdir()}
    assert pieces(bach_data, "train") | pieces(bach_data, "val") == encoded
    for split in ("train", "val"):
        tokens = BinIdx(bach_data / split)
        counts = facts["splits"][split]
        assert counts["pieces"] == len(tokens) > 0 and counts["tokens"] == tokens.n_tokens
        assert counts["notes"] == sum(codec.count_notes(tokens[i]) for i in range(len(tokens)))
        bars = BinIdx(bach_data / f"{split}.bars")
        assert len(bars) == len(tokens) and counts["bars"] == bars.n_tokens
        for i in range(len(tokens)):
            np.testing.assert_array_equal(np.cumsum(bars[i]), codec.bar_starts(tokens[i]))
    listed = [json.loads(line) for line in (bach_data / "pieces.jsonl").read_text().splitlines()]
    for split in ("train", "val"):
        lines = [line for line in listed if line["split"] == split]
        tokens = BinIdx(bach_data / split)
        assert len(lines) == len(tokens)
        for i, line in enumerate(lines):
            piece = codec.encode_piece(Path(line["file"]))
            assert (piece.ids == tokens[i]).all() and line["n_parts"] == len(piece.parts)
    assert not left_over(bach_data.parent)


def test_number_of_workers_and_location_do_not_change_the_bytes(bach_data_midi_llm, bach_midi, tmp_path):
    """Two processes and another folder give the same dataset as one process."""
    shutil.copytree(bach_midi, tmp_path / "elsewhere")
    prepare([tmp_path / "elsewhere"], tmp_path / "data", tokenizer="midi-llm", workers=2, val_fraction=0.2)
    for name in ["dataset.json", *PARTS]:
        assert (tmp_path / "data" / name).read_bytes() == (bach_data_midi_llm / name).read_bytes(), name
    listing, expected = ((folder / "pieces.jsonl").read_text() for folder in (tmp_path / "data", bach_data_midi_llm))
    assert listing == expected.replace(str(bach_midi), str(tmp_path / "elsewhere"))


def test_split_depends_on_content_and_seed(bach_midi, tmp_path):
    """A renamed piece among added files stays in its split; another seed gives another split."""
    paths = sorted(bach_midi.iterdir())
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    (many / "sub").mkdir(parents=True)
    for i, path in enumerate(paths):
        shutil.copy(path, many / "sub" / f"{99 - i}.MIDI")
        if i % 2:
            shutil.copy(path, few / path.name)
    for folder in (few, many):
        quick_prepare([folder], tmp_path / f"{folder.name}-data", val_fraction=0.5)
    quick_prepare([many], tmp_path / "other-data", val_fraction=0.5, seed=1)
    for split in ("train", "val"):
        assert pieces(tmp_path / "few-data", split) <= pieces(tmp_path / "many-data", split)
        assert pieces(tmp_path / "other-data", split) != pieces(tmp_path / "many-data", split)


def test_added_pieces_move_only_the_sole_piece_of_a_split():
    moved = 0
    for n in (2, 3, 8, 40):
        for seed in range(50):
            keys = np.random.default_rng(seed).integers(0, 2**63, (n + 10, 2), np.uint64)
            before, after = (pipeline._choose_val(part, 0.3, seed) for part in (keys[:n], keys))
            places = np.flatnonzero(before != after[:n])
            moved += len(places)
            assert all((before == before[i]).sum() == 1 for i in places)
            # Only a piece moves that was alone because the split would have been empty without it.
            by_draw = np.array([pipeline._draw(seed, key.tobytes()) for key in keys[:n]]) < 0.3
            assert not (before == by_draw)[places].any()
            order = np.random.default_rng(~seed % 2**32).permutation(n)
            assert (pipeline._choose_val(keys[:n][order], 0.3, seed) == before[order]).all()
            assert not len(places) or n < 40
    assert moved  # the exception exists


def test_each_split_has_a_piece():
    keys = np.arange(10, dtype=np.uint64).reshape(5, 2)
    for fraction, expected in ((0, 0), (1e-9, 1), (1 - 1e-9, 4)):
        assert pipeline._choose_val(keys, fraction, seed=0).sum() == expected
    for seed in range(5):
        assert not pipeline._choose_val(keys[:1], 0.9, seed).any()  # a single piece goes to train
    many = pipeline._choose_val(np.arange(8000, dtype=np.uint64).reshape(-1, 2), 0.1, seed=0)
    assert abs(many.mean() - 0.1) < 0.02


def changed(data: bytes, transpose: int, velocity: int, tempo: float) -> bytes:
    """Return the same music as another file."""
    midi = mido.MidiFile(file=io.BytesIO(data))
    for track in midi.tracks:
        for i, message in enumerate(track):
            if message.type in ("note_on", "note_off"):
                track[i] = message.copy(note=message.note + transpose)
                if message.type == "note_on" and message.velocity:
                    track[i] = track[i].copy(velocity=max(1, message.velocity - velocity))
            elif message.type == "set_tempo":
                track[i] = message.copy(tempo=round(message.tempo * tempo))
    return file_of(midi)


def test_copies_of_the_same_music_are_in_one_split(bach_midi, tmp_path):
    """Transposed, softer, slower and renamed copies are kept, in the split of the original."""
    (tmp_path / "in").mkdir()
    for number, path in enumerate(sorted(bach_midi.iterdir())):
        data = path.read_bytes()
        for copy, change in enumerate([(0, 0, 1.0), (3, 0, 1.0), (-4, 9, 1.5)]):
            (tmp_path / "in" / f"{copy}-{11 - number}.mid").write_bytes(changed(data, *change))
    facts = quick_prepare([tmp_path / "in"], tmp_path / "data", val_fraction=0.4)
    assert facts["rejected"] == {} and facts["distinct_music"] == 12
    splits_of = {}
    for line in map(json.loads, (tmp_path / "data" / "pieces.jsonl").read_text().splitlines()):
        splits_of.setdefault(Path(line["file"]).stem.split("-")[1], set()).add(line["split"])
        assert line["music"] == compute_stats(Path(line["file"]).read_bytes()).key
    assert len(splits_of) == 12 and all(len(splits) == 1 for splits in splits_of.values())
    assert set.union(*splits_of.values()) == {"train", "val"}


def test_archives_give_the_same_bytes(bach_midi, bach_data_midi_llm, tmp_path):
    paths = sorted(bach_midi.iterdir())
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar.gz", "w:gz") as archive:
        for path in paths[:5]:
            archive.add(path, path.name)
    with zipfile.ZipFile(tmp_path / "in" / "b.zip", "w") as archive:
        for path in paths[5:]:
            archive.write(path, path.name)
        archive.writestr("odd.mid", b"words")
    facts = prepare([tmp_path / "in"], tmp_path / "data", tokenizer="midi-llm", workers=2, val_fraction=0.2)
    assert facts["rejected"] == {"not a MIDI file": 1}
    assert list(rejected(tmp_path / "data")) == ["odd.mid"]
    for name in PARTS:
        assert (tmp_path / "data" / name).read_bytes() == (bach_data_midi_llm / name).read_bytes(), name


def test_filtered_files_are_counted_by_reason(bach_midi, tmp_path):
    lengths = sorted(compute_stats(path.read_bytes()).seconds for path in bach_midi.iterdir())
    seconds = ((lengths[2] + lengths[3]) / 2, lengths[9] + 0.001)
    filters = Filters({"seconds": seconds}, programs=(0,))
    facts = quick_prepare([bach_midi], tmp_path / "data", filters=filters)
    assert sum(facts["rejected"].values()) == 5 and len(facts["rejected"]) == 2
    assert {reason.split()[0] for reason in facts["rejected"]} == {"shorter", "longer"}
    lines = rejected(tmp_path / "data")
    assert len(lines) == 5
    assert facts["options"]["filters"] == {"seconds": list(seconds), "programs": [0]}
    [measured] = {tuple(line["measures"]) for line in lines.values()}
    assert measured == ("seconds",) and all(len(line["measures"]) == 1 for line in accepted(tmp_path / "data"))
    with pytest.raises(UserError, match="12 sparser than 99 notes/s.*check the filters"):
        quick_prepare([bach_midi], tmp_path / "data", filters=Filters({"notes_per_second": (99, 999)}))


def test_midi_llm(bach_data_midi_llm):
    data = bach_data_midi_llm
    assert json.loads((data / "dataset.json").read_text())["tokenizer"]["vocab_size"] == 20096
    codec = load_codec(data / "tokenizer.json")
    listed = [json.loads(line) for line in (data / "pieces.jsonl").read_text().splitlines()]
    train = [line for line in listed if line["split"] == "train"]
    tokens, bars = BinIdx(data / "train"), BinIdx(data / "train.bars")
    for i, line in enumerate(train):
        piece = codec.encode_piece(Path(line["file"]))
        assert line["n_parts"] == len(read_parts(parse_midi(Path(line["file"])))[0]) > 1
        np.testing.assert_array_equal(tokens[i], piece.ids)
        np.testing.assert_array_equal(np.cumsum(bars[i]), piece.bar_starts)


PROGRAM = """
import sys
from rwkv_music.prepare import pipeline as module
if __name__ == "__main__":
    module.CHECKPOINT_S = 0.05
    module.prepare([sys.argv[1]], sys.argv[2], tokenizer="midi-llm", workers=1, resume=True)
"""


def run_prepare(folder: Path, data: Path) -> subprocess.Popen:
    (data.parent / "main.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, data.parent / "main.py", folder, data], env=environment, text=True)


def sources_done(unfinished: Path, copy: Path) -> int:
    """Return the number of sources in the log, read from a copy so that the resumed run finds what the kill left."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(unfinished, copy)
    with closing(sqlite3.connect(copy / DATABASE)) as log:
        return log.execute("SELECT count(*) FROM sources").fetchone()[0]


def test_killed_and_resumed_run_gives_the_same_bytes(bach_midi, tmp_path):
    (tmp_path / "in").mkdir()
    for copy in range(15):
        for path in bach_midi.iterdir():
            (tmp_path / "in" / f"{copy}-{path.name}").write_bytes(changed(path.read_bytes(), copy % 12 - 6, copy, 1.0))
    quick_prepare([tmp_path / "in"], tmp_path / "whole")
    progress = [0]
    log = tmp_path / ".data.unfinished" / DATABASE
    for kills_left in (2, 1, 0):
        process = run_prepare(tmp_path / "in", tmp_path / "data")
        start = log.stat().st_size if log.exists() else 0
        deadline = time.monotonic() + 60
        while kills_left and process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.stat().st_size > start + 50_000:
                process.kill()
                process.wait()
                progress.append(sources_done(log.parent, tmp_path / "copy"))
                break
            time.sleep(0.002)
        process.wait()
    assert 0 == progress[0] < progress[1] < progress[2] < 180
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "data" / path.name).read_bytes(), path.name
    shutil.rmtree(tmp_path / "copy")
    assert not left_over(tmp_path)


def test_resume_refuses_changed_files_and_settings(bach_midi, tmp_path):
    """The unfinished run is kept, and can be resumed after the change is undone."""
    shutil.copytree(bach_midi, tmp_path / "in")

    def interrupted(*args):
        yield from islice(map_in_process(*args), 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick_prepare([tmp_path / "in"], tmp_path / "data", interrupted)
    assert left_over(tmp_path) == [".data.unfinished"]
    with pytest.raises(UserError, match="settings .tokenizer."):
        prepare([tmp_path / "in"], tmp_path / "data", workers=1, resume=True)
    (tmp_path / "in" / "aaa.mid").write_bytes(b"")
    with pytest.raises(UserError, match="added or removed.*--resume"):
        quick_prepare([tmp_path / "in"], tmp_path / "data", resume=True)
    (tmp_path / "in" / "aaa.mid").unlink()
    assert left_over(tmp_path) == [".data.unfinished"]
    first = min((tmp_path / "in").iterdir())
    first.rename(tmp_path / "away.mid")
    with pytest.raises(UserError, match="added or removed.*--resume"):
        quick_prepare([tmp_path / "in"], tmp_path / "data", resume=True)
    (tmp_path / "away.mid").rename(first)
    assert sources_done(tmp_path / ".data.unfinished", tmp_path / "copy") == 5
    quick_prepare([tmp_path / "in"], tmp_path / "data", resume=True)
    quick_prepare([tmp_path / "in"], tmp_path / "whole")
    assert (tmp_path / "data" / "dataset.json").read_bytes() == (tmp_path / "whole" / "dataset.json").read_bytes()
    assert not left_over(tmp_path)


def test_karaoke_and_riff_files_are_read(bach_midi, tmp_path):
    (tmp_path / "in").mkdir()
    songs = [path.read_bytes() for path in sorted(bach_midi.iterdir())[:2]]
    (tmp_path / "in" / "song.KAR").write_bytes(songs[0])
    (tmp_path / "in" / "song.rmi").write_bytes(b"RIFF\0\0\0\0RMIDdata\0\0\0\0" + songs[1])
    facts = quick_prepare([tmp_path / "in"], tmp_path / "data")
    assert facts["files"] == 2 and facts["rejected"] == {} and facts["passed_over"] == {}


def test_lost_notes_are_counted(tmp_path):
    """A fade-out by expression silences 4 notes, and Reset All Controllers does not end it for midi-llm."""
    fade = [
        (960, mido.Message("control_change", control=11, value=0)),
        (960, mido.Message("control_change", control=121)),
    ]
    notes = [message for i in range(8) for message in note(i * 240, i * 240 + 240, 60 + i)]
    effects = note(0, 240, 60, channel=1)
    (tmp_path / "in").mkdir()
    midi = make_midi(fade, notes, [(0, mido.Message("program_change", channel=1, program=127)), *effects])
    midi.save(tmp_path / "in" / "a.mid")
    facts = quick_prepare([tmp_path / "in"], tmp_path / "data", val_fraction=0)
    silent, other = "notes silenced by volume or expression", "notes of other instruments"
    assert facts["lost"] == {other: {"pieces": 1, "number": 1}, silent: {"pieces": 1, "number": 4}}
    line = json.loads((tmp_path / "data" / "pieces.jsonl").read_text())
    assert line["n_notes"] == 4 and line["lost"] == {silent: 4, other: 1}
    assert silent in (tmp_path / "data" / REPORT).read_text()


def test_bad_files_are_rejected_with_reasons(bach_midi, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    good = sorted(bach_midi.iterdir())[:3]
    for path in good:
        shutil.copy(path, folder)
    data = good[0].read_bytes()
    (folder / "Copy.MID").write_bytes(data)
    (folder / "cut.mid").write_bytes(data[: len(data) // 2])
    (folder / "empty.mid").write_bytes(b"")
    (folder / "words.Midi").write_text("These are words.")
    (folder / "notes.txt").write_text("ignored")
    (folder / "gone.mid").symlink_to(folder / "nowhere")
    (folder / "folder.mid").mkdir()
    facts = quick_prepare([folder], tmp_path / "data")
    lines = rejected(tmp_path / "data")
    assert {name: line["reason"] for name, line in lines.items() if name not in ("Copy.MID", good[0].name)} == {
        "cut.mid": "truncated",
        "empty.mid": "empty file",
        "words.Midi": "not a MIDI file",
        "gone.mid": "cannot be opened (No such file or directory)",
    }
    # Of two files with the same bytes the first by name is kept.
    assert lines[good[0].name]["reason"] == "duplicate" and Path(lines[good[0].name]["of"]).name == "Copy.MID"
    assert facts["files"] == 8 and sum(facts["rejected"].values()) == 5 and facts["passed_over"] == {".txt": 1}
    assert sum(counts["pieces"] for counts in facts["splits"].values()) == 3


def make_troubled_reader(*setup_args):
    """Return the reader of a worker process that fails as native code can, at files with the names of the faults."""
    read = pipeline._make_reader(*setup_args)

    def troubled(item):
        fault = Path(item[0]).stem
        if fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "abort":
            os.abort()
        if fault == "memory":
            return bytearray(8 << 30)
        while fault == "loop":
            pass
        return read(item)

    return troubled


def test_file_that_breaks_its_worker_costs_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "_make_reader", make_troubled_reader)
    monkeypatch.setattr(pipeline, "FILE_LIMIT_S", 0.3)
    (tmp_path / "in").mkdir()
    names = ["a", "abort", "b", "loop", "memory", "n", "segfault", "z"]
    for i, name in enumerate(names):
        scale = [message for j in range(8) for message in note(j * 240, j * 240 + 240, 40 + i * j)]
        make_midi(scale).save(tmp_path / "in" / f"{name}.mid")
    facts = prepare([tmp_path / "in"], tmp_path / "data", tokenizer="midi-llm", workers=1, val_fraction=0)
    assert {name: line["reason"] for name, line in rejected(tmp_path / "data").items()} == {
        "abort.mid": "crashed its worker process",
        "loop.mid": "took longer than 0.6 s of CPU time",
        "memory.mid": "takes too much memory",
        "segfault.mid": "crashed its worker process",
    }
    listed = [json.loads(line)["file"] for line in (tmp_path / "data" / "pieces.jsonl").read_text().splitlines()]
    assert [Path(file).stem for file in listed] == ["a", "b", "n", "z"] and facts["splits"]["train"]["pieces"] == 4


def test_dataset_is_replaced_only_by_a_complete_one(bach_midi, bach_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(bach_data, data)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mid").write_text("words")
    with pytest.raises(UserError, match="1 file.*1 not a MIDI file"):
        quick_prepare([tmp_path / "bad"], data)
    assert (data / "train.bin").read_bytes() == (bach_data / "train.bin").read_bytes()
    quick_prepare([bach_midi], data, val_fraction=0)
    assert len(BinIdx(data / "train")) == 12
    assert not left_over(tmp_path)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: None, "There is no file or folder"),
        (lambda folder: folder.mkdir(), "There is no music"),
        (lambda folder: folder.write_text(""), "neither a folder nor a file with music"),
    ],
)
def test_missing_and_unusable_paths_raise_user_error(tmp_path, make, match):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=match):
        prepare([tmp_path / "in"], tmp_path / "data")
    assert not (tmp_path / "data").exists() and not left_over(tmp_path)


def test_other_content_of_out_is_never_replaced(bach_midi, bach_data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="thesis.txt"):
        prepare([bach_midi], tmp_path / "mine", workers=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"
    shutil.copytree(bach_data, tmp_path / "data")
    (tmp_path / "data" / "thesis.txt").write_text("dear")
    with pytest.raises(UserError, match="thesis.txt"):
        prepare([bach_midi], tmp_path / "data", workers=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        prepare([bach_midi], tmp_path / "file", workers=1)
    with pytest.raises(UserError, match="choose one of .*multitrack"):
        prepare([bach_midi], tmp_path / "new", tokenizer="abc", workers=1)
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="validation fraction"):
            prepare([bach_midi], tmp_path / "new", val_fraction=fraction, workers=1)
    assert not (tmp_path / "new").exists() and not left_over(tmp_path)


def test_full_disk_is_reported_and_resumable(bach_midi, tmp_path):
    """A limit on the size of files stands in for a full disk."""
    program = f"""
import resource, signal
from rwkv_music.prepare.pipeline import prepare
from rwkv_music.errors import UserError
if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, {resource.RLIM_INFINITY}))
    try:
        prepare([{str(bach_midi)!r}], {str(tmp_path / "data")!r}, tokenizer="midi-llm", workers=1)
    except UserError as error:
        print("UserError:", error)
"""
    (tmp_path / "main.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], env=environment, check=True, capture_output=True, text=True
    )
    assert "UserError:" in done.stdout and ".data.unfinished" in done.stdout and "--resume" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.unfinished", "main.py"]
    # Without the limit, the run resumes.
    quick_prepare([bach_midi], tmp_path / "data", resume=True)
    quick_prepare([bach_midi], tmp_path / "whole")
    assert (tmp_path / "data" / "train.bin").read_bytes() == (tmp_path / "whole" / "train.bin").read_bytes()
    assert not left_over(tmp_path)


def test_without_validation_documents_are_in_order_of_names(bach_midi, tmp_path):
    facts = quick_prepare([bach_midi], tmp_path / "data", val_fraction=0)
    assert facts["splits"]["val"] == {"pieces": 0, "tokens": 0, "bars": 0, "notes": 0}
    assert len(BinIdx(tmp_path / "data" / "val")) == 0
    codec = load_codec(tmp_path / "data" / "tokenizer.json")
    tokens = BinIdx(tmp_path / "data" / "train")
    assert len(tokens) == 12
    for i, path in enumerate(sorted(bach_midi.iterdir())):
        np.testing.assert_array_equal(tokens[i], codec.encode(path))
