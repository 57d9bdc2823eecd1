"""The remi codec: round trips, bars and the sustain pedal."""

import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import RejectedMidi, timed_messages, to_track
from rwkv_music.tokenizers.registry import make_codec
from rwkv_music.tokenizers.remi import Remi
from tests.midi.midi_files import file_of

Note = tuple[int, int, int, int, int]  # program (-1 for drums), start, end (ticks), pitch, velocity


@pytest.fixture(scope="module")
def codec() -> Remi:
    return make_codec("remi")


def midi_of(
    notes: list[Note],
    signatures: list[tuple[int, int, int]] = ((0, 4, 4),),
    tempos: list[tuple[int, float]] = (),
    ticks_per_beat: int = 96,
) -> bytes:
    """Return a file with a track per program. Signatures are (tick, numerator, denominator), tempos (tick, bpm)."""
    tracks = [[(t, mido.MetaMessage("time_signature", numerator=n, denominator=d)) for t, n, d in signatures]]
    tracks[0] += [(t, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))) for t, bpm in tempos]
    for i, program in enumerate(sorted({note[0] for note in notes})):
        channel = 9 if program == -1 else i % 9
        events = [(0, mido.Message("program_change", channel=channel, program=max(program, 0)))]
        for _, start, end, pitch, velocity in (note for note in notes if note[0] == program):
            events.append((start, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)))
            events.append((end, mido.Message("note_off", channel=channel, note=pitch)))
        tracks.append(events)
    return file_of(mido.MidiFile(ticks_per_beat=ticks_per_beat, tracks=[to_track(events) for events in tracks]))


def notes_of(midi: mido.MidiFile, ticks_per_beat: int = 96) -> list[Note]:
    """Return the notes of a file. Fails if notes overlap or do not end."""
    notes, scale = [], ticks_per_beat / midi.ticks_per_beat
    sounding, programs = {}, {}
    events = [event for track in midi.tracks for event in timed_messages(track)]
    for now, message in sorted(events, key=lambda event: event[0]):
        if message.type == "program_change":
            programs[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            key = message.channel, message.note
            if message.type == "note_on" and message.velocity > 0:
                assert key not in sounding
                sounding[key] = now, message.velocity, programs[message.channel]
            else:
                start, velocity, program = sounding.pop(key)
                assert now > start
                program = -1 if message.channel == 9 else program
                notes.append((program, round(start * scale), round(now * scale), message.note, velocity))
    assert not sounding
    return sorted(notes)


def assert_round_trip(codec: Remi, ids: np.ndarray) -> None:
    """Check that decoding and encoding again gives the same ids."""
    np.testing.assert_array_equal(codec.encode(file_of(codec.decode(ids))), ids)


VELOCITIES = [int(velocity) for velocity in np.linspace(0, 127, 33, dtype=int)[1:]]
GRID = 96 // 24


def random_notes(rng, programs, n=60, beats=40) -> list[Note]:
    """Return notes on the codec's grid without overlaps."""
    notes, free = [], {}
    for start in np.sort(rng.integers(0, beats * 24, n)) * GRID:
        program, pitch = int(rng.choice(programs)), int(rng.integers(0, 128))
        end = int(start + rng.integers(1, 16 * 24 + 1) * GRID)
        if free.get((program, pitch), 0) <= start:
            notes.append((program, int(start), end, pitch, int(rng.choice(VELOCITIES))))
            free[program, pitch] = end
    return sorted(notes)


@pytest.mark.parametrize("programs", [[0], [40], [-1], [0, 33, 48, -1], list(range(5, 13))])
def test_round_trip_of_quantized_notes(codec, programs):
    for seed in range(5):
        notes = random_notes(np.random.default_rng(seed), programs)
        ids = codec.encode(midi_of(notes))
        assert notes_of(codec.decode(ids)) == notes
        assert codec.count_notes(ids) == len(notes)
        assert_round_trip(codec, ids)


def test_forty_instruments_share_channels(codec):
    # The instruments play one after another, because only as many as there are channels can sound together.
    notes = [(program, i * 96, i * 96 + 96, 60, 127) for i, program in enumerate(range(40))]
    tokens = ["BOS_None", "Bar_None", "TimeSig_4/4"]
    for i, program in enumerate(range(40)):
        if i and i % 4 == 0:
            tokens += ["Bar_None", "TimeSig_4/4"]
        tokens += [f"Position_{i % 4 * 24}", f"Program_{program}", "Pitch_60", "Velocity_127", "Duration_1.0.24"]
    ids = [codec.vocabulary.index(token) for token in tokens]
    assert notes_of(codec.decode(np.array(ids))) == notes


@pytest.mark.parametrize("bars", [[(4, 4)], [(3, 4), (6, 8)], [(2, 2), (4, 4), (12, 8), (5, 16)], [(4, 1), (7, 8)]])
def test_changing_time_signatures(codec, bars):
    rng = np.random.default_rng(0)
    signatures, tick = [], 0
    for _ in range(4):
        for numerator, denominator in bars:
            signatures.append((tick, numerator, denominator))
            tick += 2 * 96 * 4 * numerator // denominator
    notes = [
        (0, start, start + 48, pitch, 127)
        for start, pitch in zip(range(0, tick, 96), rng.integers(30, 90, 10_000).tolist(), strict=False)
    ]
    ids = codec.encode(midi_of(notes, signatures))
    assert notes_of(codec.decode(ids)) == notes
    assert_round_trip(codec, ids)
    # The number of bars follows from the signatures and the last note.
    lengths = [96 * 4 * n // d for _ in range(4) for n, d in bars for _ in range(2)]
    assert len(codec.bar_starts(ids)) == sum(start <= notes[-1][1] for start in np.cumsum([0, *lengths[:-1]]))


METERS = {
    # (signatures, number of bars of 12 whole notes, time signatures of the first tokens, lost signatures)
    "18/8": ([(0, 18, 8)], 6, ["9/4"], 0),
    "24/8": ([(0, 24, 8)], 4, ["12/4"], 0),
    "8/32": ([(0, 8, 32)], 48, ["4/16"], 0),
    "21/16": ([(0, 21, 16)], 12, ["4/4"], 1),
    "5/32": ([(0, 5, 32)], 12, ["4/4"], 1),
    "back from 5/32": ([(0, 2, 4), (384, 5, 32), (768, 3, 4)], 18, ["2/4"] * 4 + ["3/4"], 1),
    "third bar cut": ([(0, 4, 4), (960, 3, 4)], 16, ["4/4", "4/4", "2/4", "3/4"], 0),
    "first bar cut": ([(0, 4, 4), (96, 4, 4)], 13, ["1/4", "4/4"], 0),
    "cut to an eighth": ([(0, 6, 8), (336, 2, 4)], 25, ["6/8", "1/8", "2/4"], 0),
    "two cuts": ([(0, 4, 4), (96, 3, 4), (192, 2, 4)], 25, ["1/4", "1/4", "2/4"], 0),
    "change just after the bar line": ([(0, 4, 4), (385, 2, 4)], 23, ["4/4", "2/4"], 0),
    "cut that no meter has": ([(0, 4, 4), (111, 2, 4)], 23, ["4/4", "2/4"], 1),
}


@pytest.mark.parametrize("case", METERS)
def test_meters(codec, case):
    """Every meter has its bars, if the vocabulary can express them."""
    signatures, n_bars, first, n_lost = METERS[case]
    notes = [(0, start, start + 24, 60, 127) for start in range(0, 12 * 384, 24)]
    piece = codec.encode_piece(midi_of(notes, signatures))
    found = [codec.vocabulary[token][8:] for token in piece.ids if codec.vocabulary[token].startswith("TimeSig")]
    assert len(piece.bar_starts) == n_bars and found[: len(first)] == first and codec.count_notes(piece.ids) == 192
    assert piece.lost == ({"time signatures that the vocabulary lacks": n_lost} if n_lost else {})
    assert_round_trip(codec, piece.ids)


def test_double_notes_are_counted(codec):
    assert codec.encode_piece(midi_of([(0, 0, 96, 60, 127), (5, 0, 96, 60, 127)])).lost == {}
    upper = mido.MidiFile(file=io.BytesIO(midi_of([(0, 0, 96, 60, 127)])))
    upper.tracks.append(upper.tracks[1])
    assert codec.encode_piece(file_of(upper)).lost == {"notes that double another note": 1}


def test_round_trip_of_encoded_music(codec):
    """Ids survive the round trip even for notes off the grid, overlaps and signatures within bars."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        notes = [
            (int(rng.choice([0, 24, 25, -1])), start, start + int(rng.integers(1, 900)), int(rng.integers(55, 65)),
             int(rng.integers(1, 128)))
            for start in rng.integers(0, 4000, 80).tolist()
        ]  # fmt: skip
        signatures = [
            (tick, int(rng.integers(1, 17)), int(rng.choice([1, 2, 4, 8, 16])) if tick else 4)
            for tick in [0, *np.sort(rng.integers(1, 4000, 5)).tolist()]
        ]
        tempos = [(tick, float(rng.uniform(20, 600))) for tick in np.sort(rng.integers(0, 4000, 5)).tolist()]
        ids = codec.encode(midi_of(notes, signatures, tempos, ticks_per_beat=int(rng.choice([7, 96, 480, 10080]))))
        assert ids[0] == codec.bos_id and ids[-1] == codec.eos_id and ids.dtype == np.uint16
        notes_of(codec.decode(ids))
        assert_round_trip(codec, ids)


def test_voices_of_one_instrument_do_not_overlap(codec):
    """A note ends where another voice starts its pitch, and a unison becomes one note."""
    upper = mido.MidiFile(file=io.BytesIO(midi_of([(0, 0, 384, 60, 127), (0, 384, 480, 64, 63)])))
    lower = mido.MidiFile(file=io.BytesIO(midi_of([(0, 96, 192, 60, 127), (0, 384, 576, 64, 127)])))
    upper.tracks.append(mido.MidiTrack(m if m.is_meta else m.copy(channel=1) for m in lower.tracks[1]))
    assert notes_of(codec.decode(codec.encode(file_of(upper)))) == [
        (0, 0, 96, 60, 127),
        (0, 96, 192, 60, 127),
        (0, 384, 576, 64, 127),
    ]


def test_equal_music_gives_equal_ids(codec):
    """The order of the tracks does not matter."""
    notes = random_notes(np.random.default_rng(1), [0, 40])
    whole = codec.encode(midi_of(notes))
    midi = mido.MidiFile(file=io.BytesIO(midi_of(notes)))
    midi.tracks.append(midi.tracks.pop(1))
    np.testing.assert_array_equal(codec.encode(file_of(midi)), whole)


def test_round_trip_of_tempos(codec):
    tempos = [(0, 120.0), (384, 60.0), (768, 240.0)]
    ids = codec.encode(midi_of([(0, 0, 1000, 60, 127)], tempos=tempos))
    found, now = [], 0
    midi = codec.decode(ids)
    for message in midi.tracks[0]:
        now += message.time
        if message.type == "set_tempo":
            found.append((now * 96 // midi.ticks_per_beat, mido.tempo2bpm(message.tempo)))
    assert found == tempos


def test_chorale(codec, bach_midi):
    for path in sorted(bach_midi.iterdir())[:4]:
        ids = codec.encode(path)
        assert_round_trip(codec, ids)
        starts = codec.bar_starts(ids)
        assert starts[0] == 1 and all(codec.vocabulary[ids[start]] == "Bar_None" for start in starts)
        assert 100 < codec.count_notes(ids) < len(ids) / 3
        # There is one instrument, so its program appears once.
        assert sum(codec.vocabulary[i].startswith("Program") for i in ids) == 1
        # The first bars decode to a valid file with only their notes.
        opening = ids[: starts[4]]
        assert len(notes_of(codec.decode(opening))) == codec.count_notes(opening)


def test_any_ids_decode(codec):
    rng = np.random.default_rng(0)
    note = [i for i, token in enumerate(codec.vocabulary) if token.startswith(("Pitch", "Velocity", "Duration"))]
    for _ in range(40):
        ids = rng.choice([*range(codec.vocab_size), *note * 3], rng.integers(0, 800))
        midi = codec.decode(ids)
        notes_of(midi)
        again = mido.MidiFile(file=io.BytesIO(file_of(midi)))
        assert notes_of(again) == notes_of(midi)
    # An incomplete note at the end, and special tokens in the middle.
    ids = codec.encode(midi_of([(0, 0, 96, 60, 127), (0, 96, 192, 62, 127)]))
    assert len(notes_of(codec.decode(ids[:-2]))) == 1
    assert len(notes_of(codec.decode(np.insert(ids, 6, [0, 1, 2])))) == 2


NOTE = [(0, 0, 96, 60, 64)]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (midi_of([]), "no notes"),
        (midi_of([(0, 0, 0, 60, 64)]), "no notes"),
        (midi_of([*NOTE, (0, 2**27, 2**27 + 96, 60, 64)]), "longer than 20,000 quarter notes"),
        (midi_of(NOTE)[:-6], "truncated"),
        (midi_of(NOTE).replace(b"\x90\x3c", b"\xf4\x3c"), "damaged events (undefined status byte)"),
    ],
)
def test_rejected(codec, data, reason):
    with pytest.raises(RejectedMidi) as raised:
        codec.encode(data)
    assert raised.value.reason == reason


@pytest.mark.parametrize("signature", [b"\x00\x02", b"\xff\x02", b"\x04\x08", b"\x04\x1e", b"\x04\xc8", b"\x7f\x00"])
def test_invalid_time_signatures_are_ignored(codec, signature):
    data = midi_of(NOTE, [(0, 4, 4)])
    ids = codec.encode(data.replace(b"\xff\x58\x04\x04\x02", b"\xff\x58\x04" + signature))
    np.testing.assert_array_equal(ids, codec.encode(data))


def test_damaged_bytes_never_crash(codec, bach_midi):
    data = sorted(bach_midi.iterdir())[0].read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(8, len(data), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            codec.encode(bytes(damaged))
            outcomes.add("tokens")
        except RejectedMidi as error:
            outcomes.add(error.reason)
    assert {"tokens", "damaged events (one crosses the end of its track)"} <= outcomes
    assert not any(outcome.startswith("MidiTok failed") for outcome in outcomes)


def with_pedal(events: list[tuple[int, bool]], notes: list[Note]) -> bytes:
    """Return the file of `midi_of` with (tick, down) events of the sustain pedal."""
    midi = mido.MidiFile(file=io.BytesIO(midi_of(notes)))
    pedal = [(tick, mido.Message("control_change", control=64, value=127 * down)) for tick, down in events]
    midi.tracks[1] = to_track(timed_messages(midi.tracks[1]) + pedal, note_offs_first=False)
    return file_of(midi)


@pytest.mark.parametrize(
    ("pedal", "ends"),
    [
        ([], [96, 192, 288, 384]),
        ([(48, True), (240, False)], [240, 240, 288, 384]),  # held until the pedal is released
        ([(48, True), (150, False), (160, True), (336, False)], [150, 336, 336, 384]),
        ([(96, True), (120, False)], [96, 192, 288, 384]),  # pressed at the note-off: too late
        ([(200, True)], [96, 192, 384, 384]),  # never released: held to the end
        ([(0, True), (0, False)], [96, 192, 288, 384]),
        ([(240, False)], [96, 192, 288, 384]),
    ],
)
def test_pedal_holds_notes(codec, pedal, ends):
    notes = [(0, 96 * i, 96 * i + 96, 60 + i, 127) for i in range(4)]
    held = [
        (program, start, end, pitch, loud) for (program, start, _, pitch, loud), end in zip(notes, ends, strict=True)
    ]
    expected = [(p, s, round(e / GRID) * GRID, pitch, loud) for p, s, e, pitch, loud in held]
    found = notes_of(codec.decode(codec.encode(with_pedal(pedal, notes))))
    assert [note[1:4:2] for note in found] == [note[1:4:2] for note in expected]
    np.testing.assert_allclose([note[2] for note in found], ends, atol=GRID)


def test_repeated_note_under_the_pedal(codec):
    notes = [(0, 0, 48, 60, 127), (0, 96, 144, 60, 127)]
    data = with_pedal([(24, True), (384, False)], notes)
    assert notes_of(codec.decode(codec.encode(data))) == [(0, 0, 96, 60, 127), (0, 96, 384, 60, 127)]
