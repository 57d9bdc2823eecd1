"""The multitrack codec: MIDI files to tokens and back, bars, the sustain pedal and files that cannot be encoded."""

import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import RejectedMidi, timed_messages, to_track
from rwkv_music.tokenizers.multitrack import OTHER_METERS
from rwkv_music.tokenizers.multitrack_vocabulary import STEPS, VELOCITIES
from rwkv_music.tokenizers.registry import make_codec
from tests.midi.midi_files import file_of

Note = tuple[int, int, int, int, int]  # program (-1 for drums), start, end (ticks), pitch, velocity


CODEC = make_codec("multitrack")


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


def assert_round_trip(ids: np.ndarray) -> None:
    """Check that decoding and encoding again gives the same ids."""
    np.testing.assert_array_equal(CODEC.encode(file_of(CODEC.decode(ids))), ids)


GRID = 96 // STEPS


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
def test_round_trip_of_quantized_notes(programs):
    for seed in range(5):
        notes = random_notes(np.random.default_rng(seed), programs)
        ids = CODEC.encode(midi_of(notes))
        assert notes_of(CODEC.decode(ids)) == notes
        assert CODEC.count_notes(ids) == len(notes)
        assert_round_trip(ids)


def test_forty_instruments_share_channels():
    # The instruments play one after another, because only as many as there are channels can sound together.
    notes = [(program, i * 96, i * 96 + 96, 60, 127) for i, program in enumerate(range(40))]
    tokens = ["BOS"]
    for i, program in enumerate(range(40)):
        if i % 4 == 0:
            tokens += ["Bar", "TimeSig_4/4"]
        tokens += [f"Part_{i + 1}", f"Program_{program}", f"Position_{i % 4 * 24}", "Pitch_60", "Velocity_127"]
        tokens.append("Duration_24")
    ids = [CODEC.vocabulary.index(token) for token in tokens]
    assert notes_of(CODEC.decode(np.array(ids))) == notes


@pytest.mark.parametrize("bars", [[(4, 4)], [(3, 4), (6, 8)], [(2, 2), (4, 4), (12, 8), (5, 16)], [(4, 1), (7, 8)]])
def test_changing_time_signatures(bars):
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
    ids = CODEC.encode(midi_of(notes, signatures))
    assert notes_of(CODEC.decode(ids)) == notes
    assert_round_trip(ids)
    # The number of bars follows from the signatures and the last note.
    lengths = [96 * 4 * n // d for _ in range(4) for n, d in bars for _ in range(2)]
    assert len(CODEC.bar_starts(ids)) == sum(start <= notes[-1][1] for start in np.cumsum([0, *lengths[:-1]]))


METERS = {
    # (signatures, number of bars of 12 whole notes, time signatures of the first bars, rounded bars)
    "18/8": ([(0, 18, 8)], 6, ["9/4"], 0),
    "24/8": ([(0, 24, 8)], 4, ["12/4"], 0),
    "8/32": ([(0, 8, 32)], 48, ["8/32"], 0),
    "21/16": ([(0, 21, 16)], 10, ["21/16"], 0),
    "5/32": ([(0, 5, 32)], 77, ["5/32"], 0),
    "back from 5/32": ([(0, 2, 4), (384, 5, 32), (768, 3, 4)], 23, ["2/4"] * 2 + ["5/32"] * 6 + ["2/32", "3/4"], 0),
    "third bar cut": ([(0, 4, 4), (960, 3, 4)], 16, ["4/4", "4/4", "2/4", "3/4"], 0),
    "first bar cut": ([(0, 4, 4), (96, 4, 4)], 13, ["1/4", "4/4"], 0),
    "cut to an eighth": ([(0, 6, 8), (336, 2, 4)], 25, ["6/8", "1/8", "2/4"], 0),
    "two cuts": ([(0, 4, 4), (96, 3, 4), (192, 2, 4)], 25, ["1/4", "1/4", "2/4"], 0),
    "change just after the bar line": ([(0, 4, 4), (385, 2, 4)], 24, ["4/4", "1/32", "2/4"], 1),
    "cut to nearly nine thirty-seconds": ([(0, 4, 4), (111, 2, 4)], 25, ["9/32", "2/4"], 0),
}


@pytest.mark.parametrize("case", METERS)
def test_meters(case):
    """Every meter has its bars, rounded to a length that the vocabulary has."""
    signatures, n_bars, first, n_lost = METERS[case]
    notes = [(0, start, start + 24, 60, 127) for start in range(0, 12 * 384, 24)]
    piece = CODEC.encode_piece(midi_of(notes, signatures))
    found = [CODEC.vocabulary[token][8:] for token in piece.ids if CODEC.vocabulary[token].startswith("TimeSig")]
    assert len(piece.bar_starts) == n_bars and found[: len(first)] == first and CODEC.count_notes(piece.ids) == 192
    assert piece.lost == ({OTHER_METERS: n_lost} if n_lost else {})
    assert_round_trip(piece.ids)


def test_round_trip_of_encoded_music():
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
        ids = CODEC.encode(midi_of(notes, signatures, tempos, ticks_per_beat=int(rng.choice([7, 96, 480, 10080]))))
        assert ids[0] == CODEC.bos_id and ids[-1] == CODEC.eos_id and ids.dtype == np.uint16
        assert_round_trip(ids)


def test_round_trip_of_tempos():
    tempos = [(0, 120.0), (384, 60.0), (768, 240.0)]
    ids = CODEC.encode(midi_of([(0, tick, tick + 96, 60, 127) for tick, _ in tempos], tempos=tempos))
    found, now = [], 0
    midi = CODEC.decode(ids)
    for message in midi.tracks[0]:
        now += message.time
        if message.type == "set_tempo":
            found.append((now * 96 // midi.ticks_per_beat, mido.tempo2bpm(message.tempo)))
    assert found == tempos


def test_chorale(bach_midi):
    for path in sorted(bach_midi.iterdir())[:4]:
        ids = CODEC.encode(path)
        assert_round_trip(ids)
        starts = CODEC.bar_starts(ids)
        assert starts[0] == 1 and all(CODEC.vocabulary[ids[start]] == "Bar" for start in starts)
        assert 100 < CODEC.count_notes(ids) < len(ids) / 2.5
        # Each part has one instrument, so its program appears once.
        parts, programs = ({i for i in ids if CODEC.vocabulary[i].startswith(kind)} for kind in ("Part", "Program"))
        assert sum(CODEC.vocabulary[i].startswith("Program") for i in ids) == len(parts) >= 4 and len(programs) == 1
        # The first bars decode to a valid file with only their notes.
        opening = ids[: starts[4]]
        assert len(notes_of(CODEC.decode(opening))) == CODEC.count_notes(opening)


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
def test_rejected(data, reason):
    with pytest.raises(RejectedMidi) as raised:
        CODEC.encode(data)
    assert raised.value.reason == reason


@pytest.mark.parametrize("signature", [b"\x00\x02", b"\x04\x08", b"\x04\x1e", b"\x04\xc8"])
def test_invalid_time_signatures_are_ignored(signature):
    data = midi_of(NOTE, [(0, 4, 4)])
    ids = CODEC.encode(data.replace(b"\xff\x58\x04\x04\x02", b"\xff\x58\x04" + signature))
    np.testing.assert_array_equal(ids, CODEC.encode(data))


def test_damaged_bytes_never_crash(bach_midi):
    data = sorted(bach_midi.iterdir())[0].read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(8, len(data), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            CODEC.encode(bytes(damaged))
            outcomes.add("tokens")
        except RejectedMidi as error:
            outcomes.add(error.reason)
    assert {"tokens", "damaged events (one crosses the end of its track)"} <= outcomes


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
def test_pedal_holds_notes(pedal, ends):
    notes = [(0, 96 * i, 96 * i + 96, 60 + i, 127) for i in range(4)]
    held = [
        (program, start, end, pitch, loud) for (program, start, _, pitch, loud), end in zip(notes, ends, strict=True)
    ]
    expected = [(p, s, round(e / GRID) * GRID, pitch, loud) for p, s, e, pitch, loud in held]
    found = notes_of(CODEC.decode(CODEC.encode(with_pedal(pedal, notes))))
    assert [note[1:4:2] for note in found] == [note[1:4:2] for note in expected]
    np.testing.assert_allclose([note[2] for note in found], ends, atol=GRID)


def test_repeated_note_under_the_pedal():
    notes = [(0, 0, 48, 60, 127), (0, 96, 144, 60, 127)]
    data = with_pedal([(24, True), (384, False)], notes)
    assert notes_of(CODEC.decode(CODEC.encode(data))) == [(0, 0, 96, 60, 127), (0, 96, 384, 60, 127)]
