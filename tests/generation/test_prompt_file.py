"""The opening of a prompt's file, as events and as tokens."""

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.generation.prompt_file import Opening, read_opening
from rwkv_music.midi.events import TimedMessage, timed_messages
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import TempoMap
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.registry import TOKENIZERS, make_codec
from tests.midi.midi_files import file_of, make_midi, note

BAR = 1920


@pytest.fixture(params=TOKENIZERS)
def codec(request) -> Codec:
    return make_codec(request.param)


def read(codec: Codec, midi: mido.MidiFile, bars: int) -> tuple[Piece, Opening]:
    return read_opening(codec, file_of(midi), bars, "the prompt")


def scale(first_bar: int, n_bars: int) -> list[TimedMessage]:
    """Return a note in each quarter of bars of 4/4."""
    return [
        message
        for i in range(4 * n_bars)
        for message in note(first_bar * BAR + 480 * i, first_bar * BAR + 480 * i + 400, 60 + i % 12)
    ]


def settings(*meters: tuple[int, int, int]) -> list[TimedMessage]:
    """Return time signatures, each (tick, numerator, denominator)."""
    return [(t, mido.MetaMessage("time_signature", numerator=n, denominator=d)) for t, n, d in meters]


def test_tokens_depend_only_on_the_opening(codec):
    """A note and the pedal are held over the line, and events lie on it."""
    held = [*note(1800, 2 * BAR + 300, 40), (1700, mido.Message("control_change", control=64, value=127))]
    held.append((2 * BAR + 100, mido.Message("control_change", control=64, value=0)))
    start = [(0, mido.MetaMessage("track_name", name="Piano")), (0, mido.Message("program_change", program=1))]
    later = [
        (2 * BAR, mido.MetaMessage("set_tempo", tempo=250_000)),
        (2 * BAR, mido.MetaMessage("time_signature", numerator=3, denominator=8)),
        (2 * BAR, mido.Message("program_change", program=9)),
        *note(2 * BAR, 2 * BAR + 50, 90),
        *note(5 * BAR, 5 * BAR + 50, 40),
    ]
    files = [
        make_midi(sorted([*start, *scale(0, 2), *held, *more], key=lambda timed: timed[0]))
        for more in ([*note(2 * BAR, 2 * BAR + 9, 33)], later)
    ]
    (one, opening), (other, _) = (read(codec, midi, 2) for midi in files)
    assert np.array_equal(one.ids, other.ids) and codec.count_notes(one.ids) == 9
    assert opening.line == 2 * BAR
    expected = [(tick, message) for tick, message in timed_messages(files[0].tracks[0]) if tick < 2 * BAR]
    assert timed_messages(opening.midi.tracks[0]) == expected


@pytest.mark.parametrize("early", [1, 7, 30])
def test_notes_just_before_the_line_are_encoded_before_it(codec, early):
    """The tokenizer rounds the early chord into the next bar, so it is encoded a little earlier."""
    midi = make_midi([*scale(0, 2), *note(2 * BAR - early, 2 * BAR + 400, 90), *scale(2, 1)])
    prompt, opening = read(codec, midi, 2)
    assert codec.count_notes(prompt.ids) == len(read_notes(opening.midi)) == 9
    assert len(prompt.bar_starts) == 2


def test_silent_bars_count(codec):
    """Three bars of rest: the same --context-bars means the same in every tokenizer."""
    midi = make_midi([(0, mido.Message("program_change", program=4)), *scale(3, 3)])
    prompt, opening = read(codec, midi, 5)
    assert codec.count_notes(prompt.ids) == 8 and len(prompt.bar_starts) == 5 and opening.line == 5 * BAR
    assert opening.midi.tracks[0][0].program == 4
    for silent in (1, 3):
        with pytest.raises(UserError, match=f"the prompt up to bar {silent} has no notes .* --context-bars 4"):
            read(codec, midi, silent)
    with pytest.raises(UserError, match="has 6 bars, fewer than --context-bars 7"):
        read(codec, midi, 7)


def test_silence_before_the_line(codec):
    """The tokens reach the line although the last note ends two bars earlier."""
    grammar_bars = []
    midi = make_midi([*scale(0, 2), *scale(6, 1)])
    prompt, _ = read(codec, midi, 4)
    grammar_bars.append(codec.grammar(prompt, bars=1).bars.tolist())
    assert grammar_bars == [[0]] and len(prompt.bar_starts) == 4
    assert codec.decode(prompt.ids, prompt.bar_lines).length > 0
    if prompt.bar_lines is None:
        assert [codec.vocabulary[i].split("_None")[0] for i in prompt.ids[-4:]] == ["Bar", "TimeSig_4/4"] * 2
    else:
        clock = sum(
            8 * int(codec.vocabulary[i][1:])
            for i in prompt.ids
            if codec.vocabulary[i].startswith("t") and ":" not in codec.vocabulary[i]
        )
        assert clock == pytest.approx(prompt.bar_lines.start_ms[4], abs=8)


def test_a_time_signature_inside_a_bar(codec):
    """The third bar has two beats. The bar to follow has four at the file's tempo."""
    midi = make_midi(settings((0, 4, 4), (2 * BAR + 960, 4, 4)), [*scale(0, 2), *scale(2, 10)])
    for bars, line in ((2, 2 * BAR), (3, 2 * BAR + 960), (12, 2 * BAR + 960 + 9 * BAR)):
        prompt, opening = read(codec, midi, bars)
        assert opening.line == line and len(prompt.bar_starts) == bars
        if prompt.bar_lines is not None:
            assert np.diff(prompt.bar_lines.start_ms)[-1] == pytest.approx(2000, rel=0.02)


@pytest.mark.parametrize("meter", [(18, 8), (24, 8), (21, 16), (5, 32)])
def test_meters_that_the_tokenizer_does_not_have(codec, meter):
    bar = BAR * meter[0] // meter[1]
    notes = [message for i in range(12) for message in note(i * bar, i * bar + bar // 2, 60 + i)]
    midi = make_midi(settings((0, *meter)), notes)
    prompt, opening = read(codec, midi, 11)
    assert opening.line == 11 * bar and codec.count_notes(prompt.ids) == 11
    with pytest.raises(UserError, match="has 12 bars"):
        read(codec, midi, 13)


@pytest.mark.parametrize("tempo", [0, 1, 20_000, 16_777_215])
def test_extreme_tempos(codec, tempo):
    """The bars of the prompt end before the next bar starts, whatever the tempo rounds to."""
    midi = make_midi([(0, mido.MetaMessage("set_tempo", tempo=tempo)), *scale(0, 3)])
    prompt, opening = read(codec, midi, 2)
    assert codec.count_notes(prompt.ids) == 8 and TempoMap.from_midi(opening.midi).tempos[-1] == tempo
    assert codec.decode(prompt.ids, prompt.bar_lines).length < 8 * 16.8 * 1.3


def test_files_that_cannot_be_a_prompt(codec):
    for midi, expected in ((make_midi([]), "has 0 bars"), (make_midi(note(0, 9, 60, channel=0)), "has 1 bar, ")):
        with pytest.raises(UserError, match=f"the prompt {expected}"):
            read(codec, midi, 2)
    if codec.name == "midi-llm-piano":
        with pytest.raises(UserError, match=r"midi-llm-piano"):
            read(codec, make_midi([(0, mido.Message("program_change", program=40)), *scale(0, 2)]), 1)


def test_a_prompt_whose_notes_are_silent_is_refused_with_the_cause():
    """Fine volume 0: for midi-llm, as for MIDI-LLM-tokenizer, it is a volume of 0."""
    midi = make_midi([(0, mido.Message("control_change", control=39, value=0)), *scale(0, 2)])
    with pytest.raises(UserError, match=r"up to bar 1 has no notes .* \(notes silenced by volume or expression: 4\): "):
        read(make_codec("midi-llm"), midi, 1)
    assert make_codec("multitrack").count_notes(read(make_codec("multitrack"), midi, 1)[0].ids) == 4
