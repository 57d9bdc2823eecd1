"""The midi-llm codecs: equality with MIDI-LLM-tokenizer, round trips and bar lines."""

import hashlib
import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import RejectedMidi
from rwkv_music.tokenizers.codec import BarLines
from rwkv_music.tokenizers.registry import load_codec, make_codec
from tests.midi.midi_files import file_of, odd_piece

# Prefixes of the SHA-256 of the ids (uint16, little-endian) of odd_piece(0), odd_piece(1) ... from MIDI-LLM-tokenizer
# (commit b4188a6, without splitting at silences: piece_split_delay infinite, min_piece_length -1).
GOLDEN = {
    "midi-llm": """
        d2bb755196403f80 0ee8e0f573e38389 21743f176d5c9aee 100459131a33eea2 c49526b133ed1229 76e7daf0c4abb21a
        a0a2a4095273b2b5 ba191b57d23d33ff 74ae04c46410c8b4 878390f127bf2f00 e739322e7be1e543 f6d73fa10e6de42c
        1a429bcf733c02af 1477b52d3635356d f28d17d39fe95c0b c02fa22587916f55 b407f91b85fc465f 600121080be15516
        070263d88aa9961c 73ff5613dc864a2c b0d67472567a3d8b 1a8965d1b03f9070 a185b767c1993d01 029fd7f081fafbfc""",
    "midi-llm-piano": """
        a3334f2773324cfe d94c9677d4e70950 43cc45409dfccea0 7b2c4e7cb3a2b23b 93e793b0d789ab6e 378ba54a460190bd
        f48368da18aa303b 7b0605f3a8c4c42a 29a94a39c1adb493 a3887276184bbc1b 698bed2c93431b9c 48fbc91e4eb79501
        e54d745564badb41 30542c1fdf70d630 4686eacf5ad06f13 7af59395f47bc91f 94fee0f51e68b492 1111700496504db5
        12035f042f6ebc95 3ab3c047a379dfdd 2f1cca061d36baa0 136a15549bb7bd8c 7de1c0788ed16333 e2182a2d62a67dc2""",
}
# Sizes and SHA-256 prefixes of the vocabularies in tokenizer-midi.json and tokenizer-midipiano.json, joined by spaces.
VOCABULARIES = {"midi-llm": (20096, "1a52c982477f68ec"), "midi-llm-piano": (2176, "5600b521ec970a56")}
NAMES = list(GOLDEN)


@pytest.fixture(scope="module", params=NAMES)
def codec(request):
    return make_codec(request.param)


def messages(*rows: tuple, ticks_per_beat=500, program=0) -> bytes:
    """Return a file with a track of (delta ticks, type, values). By default a tick is a millisecond."""
    track = mido.MidiTrack([mido.Message("program_change", program=program)])
    for wait, kind, *values in rows:
        names = {"on": ("note", "velocity"), "off": ("note",), "control": ("control", "value")}.get(kind)
        if names is None:
            names = {"set_tempo": ("tempo",), "time_signature": ("numerator", "denominator")}[kind]
            track.append(mido.MetaMessage(kind, time=wait, **dict(zip(names, values, strict=True))))
        else:
            kind = {"on": "note_on", "off": "note_off", "control": "control_change"}[kind]
            track.append(mido.Message(kind, time=wait, **dict(zip(names, values, strict=True))))
    return file_of(mido.MidiFile(ticks_per_beat=ticks_per_beat, tracks=[track]))


def tokens(codec, data: bytes) -> str:
    return " ".join(codec.vocabulary[i] for i in codec.encode(data)[1:-1])


def notes_of(midi: mido.MidiFile) -> list[tuple[float, float, int, int, int]]:
    """Return (start ms, end ms, channel, pitch, velocity) of each note. Fails if notes overlap or have no length."""
    notes, sounding, now = [], {}, 0.0
    for message in midi:
        now += message.time * 1000
        if message.type == "note_on":
            assert (message.channel, message.note) not in sounding
            sounding[message.channel, message.note] = now, message.velocity
        elif message.type == "note_off":
            start, velocity = sounding.pop((message.channel, message.note))
            assert now > start
            notes.append((start, now, message.channel, message.note, velocity))
    assert not sounding
    return sorted(notes)


def test_ids_equal_midi_llm_tokenizer(codec):
    for seed, golden in enumerate(GOLDEN[codec.name].split()):
        ids = codec.encode(odd_piece(seed))
        assert hashlib.sha256(ids.astype("<u2").tobytes()).hexdigest()[:16] == golden, seed


def test_vocabulary_equals_midi_llm_tokenizer(codec):
    n, golden = VOCABULARIES[codec.name]
    assert codec.vocab_size == n
    assert hashlib.sha256(" ".join(codec.vocabulary).encode()).hexdigest()[:16] == golden
    assert (codec.vocabulary[codec.pad_id], codec.vocabulary[codec.bos_id], codec.vocabulary[codec.eos_id]) == (
        "<pad>",
        "<start>",
        "<end>",
    )


def test_save_and_load(codec, tmp_path):
    codec.save(tmp_path / "tokenizer.json")
    loaded = load_codec(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == codec.fingerprint and loaded.name == codec.name
    np.testing.assert_array_equal(loaded.encode(odd_piece(3)), codec.encode(odd_piece(3)))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, "on", 60, 127), (400, "off", 60)], "pi:3c:b t50 pi:3c:0"),
        # Leading silence is removed, and long silences are cut to ten seconds.
        ([(900, "on", 60, 127), (12_000, "off", 60)], "pi:3c:b " + "t125 " * 10 + "pi:3c:0"),
        # Waits are rounded separately. Below 4 ms the notes become one moment, sorted by pitch.
        ([(0, "on", 62, 127), (4, "on", 60, 127), (4, "on", 61, 127), (5, "off", 60)],
         "pi:3c:b pi:3d:b pi:3e:b t1 pi:3c:0"),
        # The pedal delays note-offs, and drops those of notes that start again.
        ([(0, "control", 64, 64), (0, "on", 60, 127), (80, "off", 60), (80, "on", 62, 127), (80, "off", 62),
          (80, "on", 60, 127), (80, "control", 64, 63), (80, "off", 60)],
         "pi:3c:b t20 pi:3e:b t20 pi:3c:b t10 pi:3e:0 t10 pi:3c:0"),
        # Loudness is velocity times volume times expression.
        ([(0, "control", 7, 64), (0, "on", 60, 127), (8, "control", 11, 64), (0, "on", 61, 127), (8, "control", 7, 0),
          (0, "on", 62, 127), (800, "control", 123, 0)],
         "pi:3c:7 t1 pi:3d:4 t1 pi:3e:0 t100 pi:3c:0 pi:3d:0 pi:3e:0"),
        ([(0, "set_tempo", 1_000_000), (0, "on", 60, 127), (100, "off", 60)], "pi:3c:b t25 pi:3c:0"),
    ],
)  # fmt: skip
def test_encoding_of_messages(rows, expected):
    assert tokens(make_codec("midi-llm"), messages(*rows)) == expected


@pytest.mark.parametrize(("program", "letters"), [(0, "pi"), (40, "v"), (42, "b"), (47, "d"), (57, "t"), (88, "pa")])
def test_programs_share_instruments(program, letters):
    data = messages((0, "on", 60, 127), (80, "off", 60), program=program)
    assert tokens(make_codec("midi-llm"), data) == f"{letters}:3c:b t10 {letters}:3c:0"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("midi-llm", messages(), "no notes"),
        ("midi-llm", messages((0, "on", 60, 9), program=120), "no notes of the tokenizer's instruments"),
        ("midi-llm-piano", messages((0, "on", 60, 9), program=40), "no notes of the tokenizer's instruments"),
        ("midi-llm", messages((0, "control", 7, 0), (0, "on", 60, 9)), "all notes silenced by volume or expression"),
        ("midi-llm", messages((0, "on", 60, 9), (2**27, "on", 60, 9)), "longer than 20,000 quarter notes"),
        ("midi-llm", messages((0, "control", 39, 0), (0, "on", 60, 9)), "all notes silenced by volume or expression"),
        ("midi-llm", messages((0, "on", 60, 9))[:-4], "truncated"),
    ],
)
def test_rejected(name, data, reason):
    with pytest.raises(RejectedMidi) as raised:
        make_codec(name).encode(data)
    assert raised.value.reason == reason


def test_round_trip(codec, bach_midi):
    """Notes and bars survive the first round trip, and all ids survive the second."""
    for source in [*sorted(bach_midi.iterdir())[:6], *map(odd_piece, range(40))]:
        piece = codec.encode_piece(source)
        if isinstance(source, bytes):
            # The first round trip drops unmatched note-offs and shortens the silences that they divided.
            piece = codec.encode_piece(file_of(codec.decode(piece.ids, piece.bar_lines)))
        again = codec.encode_piece(file_of(codec.decode(piece.ids, piece.bar_lines)))
        assert sorted(codec._decode_notes(again.ids)[0]) == sorted(codec._decode_notes(piece.ids)[0])
        assert codec.count_notes(again.ids) == len(codec._decode_notes(piece.ids)[0])
        assert len(again.bar_starts) == len(piece.bar_starts)
        np.testing.assert_allclose(again.bar_lines.start_ms, piece.bar_lines.start_ms, atol=4)
        third = codec.encode_piece(file_of(codec.decode(again.ids, again.bar_lines)))
        np.testing.assert_array_equal(third.ids, again.ids)
        np.testing.assert_array_equal(third.bar_starts, again.bar_starts)
        np.testing.assert_array_equal(third.bar_lines.signatures, piece.bar_lines.signatures)


def test_round_trip_is_exact_without_overlaps(codec):
    """Without overlapping notes of one pitch, ids, bars and times survive the first round trip."""
    rng = np.random.default_rng(0)
    rows, free = [], {}
    for start in np.sort(rng.integers(0, 4000, 300)).tolist():
        pitch, length = int(rng.integers(20, 100)), int(rng.integers(1, 900))
        if free.get(pitch, 0) <= start:
            free[pitch] = start + length
            rows += [(start * 8, "on", pitch, int(rng.integers(1, 128))), ((start + length) * 8, "off", pitch)]
    rows.sort(key=lambda row: (row[0], row[1]))
    waits = np.diff([row[0] for row in rows], prepend=rows[0][0]).tolist()
    piece = codec.encode_piece(messages(*((wait, *row[1:]) for wait, row in zip(waits, rows, strict=True))))
    midi = codec.decode(piece.ids, piece.bar_lines)
    again = codec.encode_piece(file_of(midi))
    np.testing.assert_array_equal(again.ids, piece.ids)
    np.testing.assert_array_equal(again.bar_starts, piece.bar_starts)
    starts = [row[0] - rows[0][0] for row in rows if row[1] == "on"]
    np.testing.assert_allclose([note[0] for note in notes_of(midi)], starts, atol=0.06)


def test_any_ids_decode(codec):
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids = np.where(rng.random(400) < 0.3, rng.integers(0, 128, 400), rng.integers(0, codec.vocab_size, 400))
        lines = BarLines(np.cumsum(rng.integers(1, 3000, 5)) - 100.0, rng.choice([1, 2, 4, 8], (4, 2)))
        for bar_lines in (None, lines):
            midi = codec.decode(ids, bar_lines)
            assert notes_of(mido.MidiFile(file=io.BytesIO(file_of(midi)))) == notes_of(midi)
    # Bars that no tempo can represent are ignored, and a note without a note-off ends.
    absurd = BarLines(np.array([0.0, 1e9]), np.array([[1, 64]]))
    ids = [codec.vocabulary.index(f"p:3c:{codec.velocity_bins - 1:x}"), *[codec.vocabulary.index("t125")] * 9]
    (start, end, *_), *others = notes_of(codec.decode(np.array(ids), absurd))
    assert not others and start == 0 and end == pytest.approx(5000, abs=0.1)


BARS = {
    # (messages, bar starts, bar lines in ms)
    "note on the line": (
        [(0, "on", 60, 9), (2000, "off", 60), (0, "on", 62, 9), (1000, "off", 62)],
        [1, 4],  # <start> on t125 t125 | off on t125 off
        [0, 2000, 4000],
    ),
    "line within a wait": (
        [(0, "on", 60, 9), (500, "off", 60), (3000, "on", 62, 9)],
        [1, 6],  # on t63 off t125 t125 | t125 on
        [0, 2000, 4000],
    ),
    "silent bars": (
        [(0, "on", 60, 9), (80, "off", 60), (7920, "on", 62, 9)],
        [1, 6, 8, 10, 12],
        [0, 2000, 4000, 6000, 8000, 10000],
    ),
    "shortened silence": (
        [(0, "on", 60, 9), (2000, "off", 60), (20_000, "on", 62, 9)],
        None,
        [0, 2000, *range(3000, 13_000, 1000), 14_000],
    ),
    "upbeat": (
        [(0, "time_signature", 1, 4), (500, "time_signature", 4, 4), (0, "on", 60, 9), (1000, "off", 60),
         (1000, "on", 62, 9)],
        [1, 5],
        [0, 2000, 4000],
    ),
    "leading silence within a bar": (
        [(500, "on", 60, 9), (1500, "off", 60), (0, "on", 62, 9)],
        [1, 4],
        [-500, 1500, 3500],
    ),
    "note-offs after the last note-on": ([(0, "on", 60, 9), (2000, "off", 60)], [1], [0, 2000]),
    "slow bar": (
        [(0, "set_tempo", 1_000_000), (0, "time_signature", 3, 4), (0, "on", 60, 9), (1500, "off", 60),
         (0, "on", 61, 9)],
        [1, 5],
        [0, 3000, 6000],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BARS)
def test_bars(case):
    codec = make_codec("midi-llm")
    rows, starts, lines = BARS[case]
    piece = codec.encode_piece(messages(*rows))
    if starts is not None:
        assert piece.bar_starts.tolist() == starts
    np.testing.assert_allclose(piece.bar_lines.start_ms, lines, atol=4)
    assert len(piece.bar_lines.signatures) == len(piece.bar_starts) == len(lines) - 1


def test_bar_starts_equal_those_of_the_decoded_file(codec, bach_midi):
    for path in sorted(bach_midi.iterdir())[:4]:
        ids = codec.encode(path)
        again = codec.encode_piece(file_of(codec.decode(ids)))
        np.testing.assert_array_equal(codec.bar_starts(again.ids), again.bar_starts)
    assert len(codec.bar_starts(ids[:1])) == 0


def test_first_bars(codec, bach_midi):
    piece = codec.encode_piece(sorted(bach_midi.iterdir())[0])
    for n in (0, 1, 4, len(piece.bar_starts)):
        prompt = codec.first_bars(piece, n)
        assert len(prompt.bar_starts) == n and prompt.ids[0] == codec.bos_id and codec.eos_id not in prompt.ids
        np.testing.assert_array_equal(piece.ids[: len(prompt.ids)], prompt.ids)
        assert len(prompt.bar_lines.signatures) == max(n, 1)
    with pytest.raises(IndexError):
        codec.first_bars(piece, len(piece.bar_starts) + 1)
