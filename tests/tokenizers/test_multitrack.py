"""The multitrack codec: parts, bars, and what its tokens keep."""

import io

import mido
import numpy as np
import pytest

from rwkv_music.midi.events import DRUMS, RejectedMidi, parse_midi
from rwkv_music.midi.notes import MAX_UNISON, read_notes
from rwkv_music.midi.parts import read_parts
from rwkv_music.midi.time import BarGrid
from rwkv_music.tokenizers.multitrack import DOUBLE_NOTES, OTHER_METERS, read_tokens
from rwkv_music.tokenizers.multitrack_cells import (
    Cell,
    content_notes,
    control_tokens,
    note_rows,
    read_excerpt,
    state_tokens,
    write_bars,
)
from rwkv_music.tokenizers.multitrack_grammar import DRUM, MELODIC, FillGrammar, Step
from rwkv_music.tokenizers.multitrack_vocabulary import MAX_PARTS, TIME_SIG, TIME_SIGNATURES
from rwkv_music.tokenizers.registry import make_codec
from tests.midi.midi_files import file_of, make_midi, note

CODEC = make_codec("multitrack")


def names(ids) -> list[str]:
    return [CODEC.vocabulary[i] for i in ids]


def ids_of(*tokens: str) -> np.ndarray:
    return np.array([CODEC.vocabulary.index(token) for token in tokens], np.int64)


def meter(tick: int, numerator: int, denominator: int):
    return tick, mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)


def named(name: str):
    return 0, mido.MetaMessage("track_name", name=name)


def program(number: int, channel: int = 0, tick: int = 0):
    return tick, mido.Message("program_change", program=number, channel=channel)


def encode(*tracks, ticks_per_beat: int = 480):
    return CODEC.encode_piece(file_of(make_midi(*tracks, ticks_per_beat=ticks_per_beat)))


def decoded(piece) -> bytes:
    file = io.BytesIO()
    CODEC.decode(piece.ids, parts=piece.parts).save(file=file)
    return file.getvalue()


def test_tokens_of_a_small_piece():
    piece = encode(
        [named("Flute"), program(73), *note(0, 480, 72, 64), *note(480, 960, 74, 64), *note(1920, 2400, 76, 100)],
        [named("Kit"), *note(960, 1000, 36, 127, 9)],
    )
    assert names(piece.ids) == [
        "BOS",
        *("Bar", "TimeSig_4/4", "Tempo_120.0"),
        *("Part_1", "Program_73", "Position_0", "Pitch_72", "Velocity_64", "Duration_24"),
        *("Position_24", "Pitch_74", "Duration_24"),  # the same velocity is not named again
        *("Part_2", "Program_Drums", "Position_48", "PitchDrum_36", "Velocity_127", "Duration_2"),
        *("Bar", "TimeSig_4/4", "Part_1", "Position_0", "Pitch_76", "Velocity_100", "Duration_24"),
        "EOS",
    ]
    assert piece.bar_starts.tolist() == [1, 19] and not piece.lost


def test_unisons_names_programs_and_kits_come_back():
    source = file_of(
        make_midi(
            [named("Violin I"), program(40), *note(0, 960, 69)],
            [named("Violin II"), program(40, 1), *note(0, 960, 69, channel=1)],
            [named("Kit"), program(16, 9), *note(0, 100, 38, channel=9)],
        )
    )
    back = decoded(CODEC.encode_piece(source))
    (own, _), (found, _) = read_parts(parse_midi(source)), read_parts(parse_midi(back))
    assert [(p.program, p.kit, p.name) for p in found] == [(p.program, p.kit, p.name) for p in own]
    assert [(p.program, p.kit) for p in found] == [(40, 0), (40, 0), (DRUMS, 16)]
    assert sorted(read_notes(mido.MidiFile(file=io.BytesIO(back))).pitch.tolist()) == [38, 69, 69]


@pytest.mark.parametrize(
    "changes, expected",
    [
        ([(0, 5, 32)], ["5/32", "5/32"]),
        ([(0, 18, 8)], ["9/4"]),  # the vocabulary has no 18/8
        ([(0, 4, 4), (960, 3, 4)], ["2/4", "3/4"]),  # the change cuts the first bar short
        ([(0, 64, 4)], ["16/2", "16/2"]),  # divided into equal bars
        ([(0, 57, 16)], ["19/16", "19/16", "19/16"]),  # not longer than 16/2, but the vocabulary has no 57/16
        ([(0, 42, 4)], ["14/4", "14/4", "14/4"]),  # nor 21/4
    ],
)
def test_every_bar_has_a_time_signature_of_its_length(changes, expected):
    ticks = 16 * 1920
    piece = encode([meter(*change) for change in changes], note(0, 10, 60) + note(ticks - 480, ticks, 60))
    found = [name.removeprefix("TimeSig_") for name in names(piece.ids) if name.startswith("TimeSig_")]
    assert found[: len(expected)] == expected
    lines = BarGrid.from_midi(CODEC.decode(piece.ids)).lines(len(piece.bar_starts))
    source = BarGrid(changes, 480).lines(len(piece.bar_starts))
    assert set(source[source <= lines[-1]].tolist()) <= set(lines.tolist())
    assert OTHER_METERS not in piece.lost


def test_a_bar_of_another_length_is_rounded_and_counted():
    piece = encode([meter(0, 4, 4), meter(1000, 4, 4)], note(0, 10, 60) + note(1000, 1480, 62))
    assert piece.lost == {OTHER_METERS: 1}
    assert names(piece.ids)[2].startswith("TimeSig_") and len(piece.bar_starts) == 2


def test_a_part_may_change_its_program_inside_a_cell():
    piece = encode([program(45), *note(0, 480, 60), program(48, tick=480), *note(480, 960, 62)])
    tokens = names(piece.ids)
    at = tokens.index("Program_48")
    assert tokens[at + 1] == "Position_24" and tokens.count("Part_1") == 1
    assert read_parts(parse_midi(decoded(piece)))[0][0].program == 45


def test_an_excerpt_starts_with_the_tempo_and_programs_in_force():
    """A part keeps the program that it changed to inside a cell."""
    first = [program(45), *note(0, 480, 60), program(48, tick=480), *note(480, 960, 62), *note(1920, 2400, 64)]
    piece = encode(first, [program(3, 1), *note(1920, 2400, 50, channel=1), *note(3840, 4320, 50, channel=1)])
    before, ids = piece.ids[: piece.bar_starts[1]], piece.ids[piece.bar_starts[1] :]
    state = state_tokens(before)
    assert names(state) == ["Tempo_120.0", "Part_1", "Program_48"]
    written = write_bars(read_excerpt(piece.ids, len(before), len(piece.ids)))
    assert np.array_equal(written, write_bars(read_excerpt(np.append(state, ids), len(state), len(state) + len(ids))))
    assert names(written)[3:6] == ["Tempo_120.0", "Part_1", "Program_48"]
    [cell] = read_excerpt(piece.ids, int(piece.bar_starts[0]), len(before)).cells[0].values()
    again = Cell.of(cell.program, cell.content)
    assert names([cell.program, cell.last_program]) == names([again.program, again.last_program])
    assert names([cell.program, cell.last_program]) == ["Program_45", "Program_48"]


def test_tempo_is_the_mean_of_a_bar():
    tempos = [(0, mido.MetaMessage("set_tempo", tempo=500_000)), (960, mido.MetaMessage("set_tempo", tempo=1_000_000))]
    piece = encode(tempos, note(0, 10, 60) + note(4000, 4010, 60))
    assert [name for name in names(piece.ids) if name.startswith("Tempo")] == [
        "Tempo_81.3",
        "Tempo_60.0",
    ]  # 80, rounded


def test_overlaps_and_long_notes():
    piece = encode(note(0, 960, 60) + note(480, 1440, 60) + note(0, 480 * 70, 40))
    assert not piece.lost
    score = read_tokens(piece.ids)
    rows = sorted(zip(score.pitch.tolist(), score.start.tolist(), score.duration.tolist(), strict=True))
    assert rows == [(40, 0, 64 * 24), (60, 0, 24), (60, 24, 48)]


@pytest.mark.parametrize(
    ("notes", "kept"),  # (duration in steps, velocity) of notes of one pitch
    [
        ([(5, 64), (20, 40)], [(5, 64), (20, 40)]),
        ([(20, 40), (5, 64)], [(5, 40), (20, 64)]),  # the first note-off ends the first note
        ([(24, 80), (24, 80)], [(24, 80), (24, 80)]),
        ([(30, 64), (90, 40)], [(24, 40), (24, 64)]),  # both end where their pitch starts again
        # the longest of more than MAX_UNISON
        ([(5, 64), (6, 64), (7, 64), (4, 64), (9, 64), (8, 64), (2, 64)], [(n, 64) for n in range(4, 10)]),
    ],
)
def test_notes_of_one_pitch_that_start_together(notes, kept):
    played = [note(0, 20 * duration, 62, velocity) for duration, velocity in notes]
    piece = encode(sum(played, note(0, 480, 60)) + note(480, 960, 62) + note(0, 480, 64))
    assert piece.lost == ({DOUBLE_NOTES: len(notes) - len(kept)} if len(notes) > len(kept) else {})
    for score in (read_tokens(piece.ids), read_tokens(CODEC.encode(decoded(piece)))):
        own = (score.pitch == 62) & (score.start == 0)
        assert list(zip(score.duration[own].tolist(), score.velocity[own].tolist(), strict=True)) == kept
        assert score.pitch[score.start == 0].tolist() == [60, *[62] * len(kept), 64]
    np.testing.assert_array_equal(CODEC.encode(decoded(piece)), piece.ids)
    grammar = CODEC.grammar(CODEC.first_bars(piece, 0))
    for token in piece.ids[1:].tolist():
        assert grammar.allowed()[0, token]
        grammar.feed(np.array([token]))


@pytest.mark.parametrize("in_fill", [False, True])
def test_the_grammar_limits_the_notes_that_start_together_on_one_pitch(in_fill):
    """So a moment and a bar are finite."""
    opening = ids_of("Bar", "TimeSig_4/4", "Part_1", "Program_0")
    if in_fill:
        length = int(CODEC.rules.length[opening[1]])
        grammar = FillGrammar(CODEC.rules, [Step(opening, 0, 1, length, MELODIC)], 1)
    else:
        grammar = CODEC.grammar(CODEC.empty_piece())
    for pitch in (0, 61, 127):
        opening = ids_of(*names(opening), f"Position_{pitch // 2}")
        for n in range(MAX_UNISON):
            following = ids_of(f"Pitch_{pitch}", *(["Velocity_64"] if n == 0 else []), "Duration_24")
            for token in [*opening, *following]:
                assert grammar.allowed()[0, token], names([token])
                grammar.feed(np.array([token]))
            opening = ids_of()
        allowed = {name for name in names(np.flatnonzero(grammar.allowed()[0])) if name.startswith("Pitch_")}
        assert allowed == {f"Pitch_{higher}" for higher in range(pitch + 1, 128)}


def test_too_many_parts_and_no_notes():
    tracks = [note(0, 10, 60, channel=i % 9) for i in range(MAX_PARTS + 1)]
    with pytest.raises(RejectedMidi, match=str(MAX_PARTS)):
        encode(*tracks)
    assert len(encode(*tracks[1:]).parts) == MAX_PARTS
    with pytest.raises(RejectedMidi, match="no notes"):
        encode([meter(0, 4, 4)])


def test_tokens_out_of_place_are_ignored():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = rng.integers(0, CODEC.vocab_size, 400)
        score = read_tokens(ids)
        midi = CODEC.decode(ids)
        file = io.BytesIO()
        midi.save(file=file)
        assert (score.duration > 0).all() and len(CODEC.bar_starts(ids)) == (ids == CODEC.vocabulary.index("Bar")).sum()
    early = ids_of("Part_1", "Program_0", "Position_0", "Pitch_60", "Velocity_64", "Duration_24", "Bar", "TimeSig_2/4")
    outside = ids_of("Part_1", "Position_48", "Pitch_60", "Velocity_64", "Duration_24")  # after the end of the bar
    assert len(read_tokens(np.concatenate([early, outside])).pitch) == 0


def test_contents_of_cells_as_notes_and_controls():
    content = ids_of("Position_0", "Pitch_60", "Velocity_64", "Duration_12", "Pitch_64", "Duration_12")
    more = ids_of("Position_48", "Pitch_67", "Velocity_96", "Duration_48")
    assert note_rows(np.concatenate([content, more])).tolist() == [
        [0, 0.5, 60, 64],
        [0, 0.5, 64, 64],
        [2, 2, 67, 96],
    ]
    notes, cell = content_notes([content, ids_of(), more])
    assert cell.tolist() == [0, 0, 2] and notes["pitch"].tolist() == [60, 64, 67]
    signature = TIME_SIG + TIME_SIGNATURES.index((4, 4))
    tokens = control_tokens([content, ids_of(), more], np.full(3, signature))
    assert [[CODEC.vocabulary[i] for i in row if i >= 0] for row in tokens] == [
        ["Control_density=low", "Control_polyphony=2", "Control_register=middle", "Control_duration=medium"],
        [],
        ["Control_density=low", "Control_polyphony=1", "Control_register=high", "Control_duration=very-long"],
    ]


@pytest.mark.parametrize("kind", [MELODIC, DRUM])
def test_a_fill_consists_of_the_given_tokens_and_valid_contents(kind):
    rng = np.random.default_rng(1)
    length = int(CODEC.rules.length[ids_of("TimeSig_3/8")[0]])
    given = [ids_of("Bar", "TimeSig_3/8", "Part_1"), ids_of("Part_2", "Control_density=low")]
    steps = [Step(tokens, 0, number, length, kind) for number, tokens in enumerate(given, start=1)]
    grammar, rows = FillGrammar(CODEC.rules, steps, 3), [[], [], []]
    for _ in range(20_000):
        if grammar.ended.all():
            break
        tokens = np.array([rng.choice(np.flatnonzero(row)) for row in grammar.allowed()])
        for row in np.flatnonzero(~grammar.ended):
            rows[row].append(int(tokens[row]))
        grammar.feed(tokens)
    assert grammar.ended.all() and (grammar.bars == 2).all()
    end = CODEC.vocabulary.index("End")
    for row, contents in zip(rows, grammar.contents, strict=True):
        assert row == [*given[0], *contents[0], end, *given[1], *contents[1], end]
        for content in contents:
            notes = note_rows(np.array(content, np.int64))
            assert (notes[:, 0] < 1.5).all() and (np.diff(notes[:, 0]) >= 0).all()
            is_drum = [name.startswith("PitchDrum") for name in names(content) if name.startswith("Pitch")]
            assert is_drum == [kind == DRUM] * len(notes)
