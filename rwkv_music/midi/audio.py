"""MIDI as sound, through FluidSynth and a SoundFont: a .wav beside a completion, samples for TensorBoard.

FluidSynth is called as a program, so that nothing has to be linked or installed for those who do not want it. On
Debian: `apt install fluidsynth fluid-soundfont-gm`.
"""

import os
import shutil
import subprocess
import tempfile
import wave
from pathlib import Path

import mido
import numpy as np

from rwkv_music.errors import UserError, explained
from rwkv_music.files import atomic_path

SAMPLE_RATE = 44_100  # Hz
SOUNDFONT_FOLDERS = ("/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts")
SOUNDFONTS = ("FluidR3_GM.sf2", "default-GM.sf2", "default-GM.sf3", "*.sf2", "*.sf3")  # the first that is there
LIMIT_S = 600


def find_soundfont() -> Path:
    """A General MIDI SoundFont where systems keep them. Raises UserError if there is none."""
    for pattern in SOUNDFONTS:
        for folder in SOUNDFONT_FOLDERS:
            for path in sorted(Path(folder).glob(pattern)):
                return path
    raise UserError(
        f"There is no SoundFont in {', '.join(SOUNDFONT_FOLDERS)}: `apt install fluid-soundfont-gm`, or name a file "
        "with --soundfont."
    )


def check_audio(soundfont: str | os.PathLike | None = None) -> Path:
    """The SoundFont that would be played. Raises UserError for whatever is missing."""
    if shutil.which("fluidsynth") is None:
        raise UserError("Sound needs FluidSynth, which is not installed: `apt install fluidsynth fluid-soundfont-gm`.")
    if soundfont is None:
        return find_soundfont()
    with explained(f"reading the SoundFont {soundfont}"), open(soundfont, "rb") as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"sfbk":  # FluidSynth would play silence
        raise UserError(f"{soundfont} is not a SoundFont: give the path of an .sf2 or .sf3 file.")
    return Path(soundfont)


def render(midi: mido.MidiFile, out: str | os.PathLike, soundfont: str | os.PathLike | None = None) -> None:
    """Write `midi` as `out`, a stereo .wav of 16 bits at 44.1 kHz, whole or not at all.

    Raises UserError when FluidSynth or a SoundFont is missing, or FluidSynth fails.
    """
    font = check_audio(soundfont)
    out = Path(out)
    with tempfile.TemporaryDirectory() as folder, explained(f"writing the sound {out}"):
        score = Path(folder) / "score.mid"
        midi.save(score)
        with atomic_path(out) as partial:
            command = ["fluidsynth", "-ni", "-q", "-F", str(partial), "-T", "wav", "-r", str(SAMPLE_RATE), "-O", "s16"]
            try:
                done = subprocess.run(
                    [*command, str(font), str(score)], capture_output=True, text=True, timeout=LIMIT_S
                )
            except subprocess.TimeoutExpired as error:
                raise UserError(f"FluidSynth took over {LIMIT_S} s for {out}: render a shorter piece.") from error
            if done.returncode or not partial.is_file():
                said = (done.stderr or done.stdout).strip().splitlines()
                raise UserError(
                    f"FluidSynth could not play {out} ({said[-1] if said else 'no word why'}): check {font}."
                )


def sound(midi: mido.MidiFile, soundfont: str | os.PathLike | None = None) -> np.ndarray:
    """`midi` as one channel of samples at `SAMPLE_RATE`, float32 [1, n] in -1 .. 1, for SummaryWriter.add_audio.

    Raises what `render` raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.wav"
        render(midi, path, soundfont)
        with wave.open(str(path)) as file:
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    return (frames.mean(axis=1, dtype=np.float32) / 32768)[None]
