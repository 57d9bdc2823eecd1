"""The vocabulary of the `multitrack` codec (multitrack.py), and the grid to which times are rounded."""

import numpy as np

from rwkv_music.midi.controls import CONTROLS
from rwkv_music.midi.events import DRUMS

STEPS = 24  # positions per quarter note
MAX_PARTS = 64
FINE_DURATION = 16 * STEPS  # every duration up to this one has a token; longer durations are a quarter note apart
MAX_DURATION = 64 * STEPS
DURATIONS = np.array([*range(1, FINE_DURATION), *range(FINE_DURATION, MAX_DURATION + 1, STEPS)])  # in steps
TIME_SIGNATURES = [
    (n, d) for d, most in ((1, 4), (2, 16), (4, 16), (8, 16), (16, 32), (32, 32)) for n in range(1, most + 1)
]
BAR_STEPS = np.array([4 * STEPS * n // d for n, d in TIME_SIGNATURES])
MAX_BAR = int(BAR_STEPS.max())
# Tempos are in quarter notes per minute. From 30 to 480, the nearest token is at most 2.2% from the exact tempo.
SLOWEST, STEPS_PER_OCTAVE, N_TEMPOS = 30, 16, 65
TEMPOS = SLOWEST * 2 ** (np.arange(N_TEMPOS) / STEPS_PER_OCTAVE)
VELOCITY_STEP = 4
VELOCITIES = np.minimum(np.arange(VELOCITY_STEP, 129, VELOCITY_STEP), 127)


# The tokens of tags (tags.py) follow these.
VOCABULARY = [
    "PAD",
    "BOS",
    "EOS",
    "Bar",
    *(f"TimeSig_{n}/{d}" for n, d in TIME_SIGNATURES),
    *(f"Tempo_{bpm:.1f}" for bpm in TEMPOS),
    *(f"Part_{k}" for k in range(1, MAX_PARTS + 1)),
    *(f"Program_{program}" for program in range(DRUMS)),
    "Program_Drums",
    *(f"Position_{step}" for step in range(MAX_BAR)),
    *(f"Pitch_{pitch}" for pitch in range(128)),
    *(f"PitchDrum_{pitch}" for pitch in range(128)),
    *(f"Velocity_{velocity}" for velocity in VELOCITIES),
    *(f"Duration_{steps}" for steps in DURATIONS),
    "Hole",
    "Fill",
    "Next",
    "End",
    *(f"Control_{control.name}={name}" for control in CONTROLS for name in control.classes),
]
# The id of the first token of each kind. The ids of a kind are consecutive.
_FIRST = {name.split("_")[0]: i for i, name in reversed(list(enumerate(VOCABULARY)))}
PAD, BOS, EOS, BAR, HOLE, FILL, NEXT, END = (_FIRST[name] for name in "PAD BOS EOS Bar Hole Fill Next End".split())
TIME_SIG, TEMPO, PART, PROGRAM = (_FIRST[name] for name in "TimeSig Tempo Part Program".split())
POSITION, PITCH, PITCH_DRUM = (_FIRST[name] for name in "Position Pitch PitchDrum".split())
VELOCITY, DURATION, CONTROL = (_FIRST[name] for name in "Velocity Duration Control".split())
# The id of the first class of each control.
FIRST_CLASS = CONTROL + np.cumsum([0] + [len(control.classes) for control in CONTROLS[:-1]])
