"""Filling in: the cells that were asked for are written, and nothing else changes."""

from pathlib import Path

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.generation import fill as fill_module
from rwkv_music.generation.fill import fill, write_cells
from rwkv_music.generation.sampling import Sampling
from rwkv_music.midi.cells import NewPart
from rwkv_music.midi.events import DRUMS, parse_midi
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import BarGrid
from rwkv_music.tokenizers.multitrack_cells import read_excerpt, with_holes, written_out
from rwkv_music.tokenizers.registry import make_codec
from tests.generation.test_completion import MemorizedPiece, small_model
from tests.midi.midi_files import file_of
from tests.midi.test_cells import notes_of, without_notes, written

CODEC = make_codec("multitrack")
FOUR_PARTS = ("Soprano", "Alto", "Tenor", "Bass")


@pytest.fixture(scope="module")
def chorale(bach_midi: Path) -> Path:
    """Return a chorale of four parts."""
    paths = sorted(bach_midi.glob("*.mid"))
    return next(path for path in paths if tuple(p.name for p in CODEC.encode_piece(path).parts) == FOUR_PARTS)


@pytest.fixture(scope="module")
def model():
    return small_model(CODEC.vocab_size)


def excerpt_of(path: Path):
    piece = CODEC.encode_piece(path)
    return read_excerpt(piece.ids, int(piece.bar_starts[0]), len(piece.ids))


def check_outside(path: Path, filling) -> mido.MidiFile:
    """Return the filled piece. Fails unless everything outside its cells is the file's."""
    source, result = mido.MidiFile(path), filling.midi()
    holes = written(BarGrid.from_midi(source), list(filling.parts), list(filling.cells))
    assert without_notes(result, holes)[: len(source.tracks)] == without_notes(source, holes)
    return result


def test_a_memorized_part_is_filled_in_note_for_note(chorale):
    excerpt = excerpt_of(chorale)
    holes = {(bar, 3) for bar in range(2, 7)} | {(4, 4)}
    window = excerpt.bars(0, 11)
    document, _ = written_out(*with_holes(CODEC.rules, window, holes))
    (filling,) = fill(
        MemorizedPiece(document, CODEC.vocab_size), CODEC, chorale, ["bars=3-7 parts=ten", "bars=5 parts=4"],
        context_bars=4,
    )  # fmt: skip
    result = check_outside(chorale, filling)
    assert {(cell.bar, cell.part + 1) for cell in filling.cells} == holes
    for track in range(1, 5):
        found, expected = notes_of(result, track), notes_of(mido.MidiFile(chorale), track)
        assert [note[:3] for note in found] == [note[:3] for note in expected]  # velocities are rounded


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_untrained_model_writes_exactly_the_cells(temperature, chorale, model):
    sampling = Sampling(temperature=temperature, seed=4)
    request = ["bars=2-3", "parts=alto,1 bars=6"]
    fillings = fill(model, CODEC, chorale, request, count=3, sampling=sampling, context_bars=2)
    for filling in fillings:
        check_outside(chorale, filling)
        cells = {(cell.bar, cell.part) for cell in filling.cells}
        assert cells == {(bar, part) for bar in (1, 2) for part in range(4)} | {(5, 0), (5, 1)}
        assert [(r.first_bar, r.bars, r.parts and len(r.parts)) for r in filling.regions()] == [(1, 2, None), (5, 1, 2)]
    if temperature:
        alone = fill(model, CODEC, chorale, request, count=3, sampling=sampling, context_bars=2, rows_at_once=1)
        for one, other in zip(fillings, alone, strict=True):
            for a, b in zip(one.cells, other.cells, strict=True):
                assert (a.bar, a.part) == (b.bar, b.part) and np.array_equal(a.notes, b.notes)


def test_progress_counts_only_the_requested_variants(chorale, model):
    """The last batch has one variant, and a row that is not used."""
    holes, calls = {(1, 2), (3, 1)}, []
    write_cells(model, CODEC, excerpt_of(chorale), holes, count=3, rows_at_once=2, progress=lambda *n: calls.append(n))
    done = [n for n, _ in calls]
    assert {total for _, total in calls} == {6} and done == sorted(done) and {4, 6} <= set(done) <= set(range(7))


def test_holes_of_many_bars_are_written_in_turn(chorale, model, monkeypatch):
    """A later document reads what an earlier one wrote, and both read the bars around their holes."""
    monkeypatch.setattr(fill_module, "BARS_AT_ONCE", 2)
    prompts = []
    generate = fill_module.TokenGenerator.generate

    def recorded(self, prompt_ids, *arguments):
        prompts.append(CODEC.vocabulary[0:0] + [CODEC.vocabulary[i] for i in prompt_ids])
        return generate(self, prompt_ids, *arguments)

    monkeypatch.setattr(fill_module.TokenGenerator, "generate", recorded)
    excerpt = excerpt_of(chorale)
    holes = {(bar, 2) for bar in range(3, 7)}
    (contents,) = write_cells(model, CODEC, excerpt, holes, context_bars=1)
    assert contents.keys() == holes and len(prompts) == 2
    first, second = prompts
    assert [prompt[: prompt.index("Fill")].count("Bar") for prompt in prompts] == [4, 4]
    assert first.count("Hole") == 3 and second.count("Hole") == 2  # bar 5 is a hole for the first one, too
    before = [CODEC.vocabulary[i] for i in contents[4, 2]]
    at = second.index("Part_2") + 1
    at += second[at].startswith("Program_")
    assert second[at : at + len(before)] == before if before else second[at] != "Hole"


def test_controls_stand_before_the_content(chorale, model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        fill_module, "with_holes", lambda rules, excerpt, holes, controls, later: seen.append(controls)
        or with_holes(rules, excerpt, holes, controls, later)
    )  # fmt: skip
    fill(model, CODEC, chorale, ["bars=2 parts=1,4"], controls=["density=high", "register=low parts=bass"])
    names = {part: [CODEC.vocabulary[i] for i in tokens] for (_, part), tokens in seen[0].items()}
    assert names == {1: ["Control_density=high"], 4: ["Control_density=high", "Control_register=low"]}


@pytest.mark.parametrize("program", [32, DRUMS])
def test_a_new_part_gets_a_track(program, chorale, model):
    (filling,) = fill(model, CODEC, chorale, ["bars=1-3 parts=new"], new_parts=[NewPart(program, "New")])
    result = check_outside(chorale, filling)
    n_tracks = len(mido.MidiFile(chorale).tracks)
    assert len(result.tracks) == n_tracks + 1 and result.tracks[-1].name == "New"
    assert {(cell.bar, cell.part) for cell in filling.cells} == {(bar, 4) for bar in range(3)}
    added = [part for part in read_notes(result).parts if part.track == n_tracks]
    assert [part.program for part in added] == [program]
    assert len(filling.regions()) == 1 and filling.regions()[0].parts == {(added[0].track, added[0].channel)}


@pytest.mark.parametrize(
    "request_, options, reason",
    [
        (["bars=999"], {}, "bars 1 to"),
        (["parts=trumpet"], {}, "4 Bass"),
        (["parts=9"], {}, "4 Bass"),
        (["bars=1-999 parts=1"], {}, "bars 1 to"),
        (["parts=1,2,3,4"], {}, "--fill selects every note"),
        (["bar=3"], {}, "bars=5-8"),
        (["bars=2"], {"controls": ["loudness=high"]}, "density"),
        (["bars=2"], {"controls": ["density=huge"]}, "low"),
        (["bars=2"], {"controls": ["density=low parts=viola"]}, "4 Bass"),
        (["bars=2"], {"controls": ["density=low", "density=high parts=1"]}, "twice"),
        (["bars=2"], {"new_parts": [NewPart(DRUMS)], "controls": ["register=low parts=5"]}, "drums"),
        (["bars=2"], {"context_bars": 0}, "--context-bars is 0"),
        (["bars=2"], {"count": 0}, "--count is 0"),
        (["bars=2"], {"new_parts": [NewPart(0)] * 61}, "64"),
    ],
)
def test_bad_requests_are_one_sentence(request_, options, reason, chorale, model):
    with pytest.raises(UserError) as caught:
        fill(model, CODEC, chorale, request_, **options)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_bad_files_and_tokenizers(chorale, model, tmp_path):
    with pytest.raises(UserError, match="midi-llm has no parts.*multitrack"):
        fill(model, make_codec("midi-llm"), chorale, ["bars=2"])
    for content in (b"text", file_of(mido.MidiFile(tracks=[mido.MidiTrack()]))):
        (tmp_path / "bad.mid").write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.mid"):
            fill(model, CODEC, tmp_path / "bad.mid", ["bars=1"])
    with pytest.raises(UserError, match=r"nothing\.mid"):
        fill(model, CODEC, tmp_path / "nothing.mid", ["bars=1"])
    assert parse_midi(chorale).names[1] == "Soprano"


@pytest.mark.parametrize("signature", [(33, 32), (33, 16), (64, 4)])  # only 64/4 is longer than every bar with a token
def test_bars_that_the_tokenizer_divides(signature, model, tmp_path):
    numerator, denominator = signature
    meter = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
    notes = [mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=480 * 4 * 64)]
    (tmp_path / "long.mid").write_bytes(file_of(mido.MidiFile(tracks=[mido.MidiTrack([meter, *notes, *notes])])))
    with pytest.raises(UserError, match=r"long\.mid .* vocabulary"):
        fill(model, CODEC, tmp_path / "long.mid", ["bars=1"])
