"""The names of General MIDI's instruments."""

from rwkv_music.midi.events import DRUMS
from rwkv_music.midi.general_midi import INSTRUMENTS, instrument_name


def test_each_program_has_a_name_of_its_own():
    assert len(set(INSTRUMENTS)) == 128 and "" not in INSTRUMENTS
    names = {0: "Acoustic Grand Piano", 32: "Acoustic Bass", 73: "Flute", 127: "Gunshot", DRUMS: "Drums"}
    assert {program: instrument_name(program) for program in names} == names
