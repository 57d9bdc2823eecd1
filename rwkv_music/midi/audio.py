"""Rendering of MIDI to audio with FluidSynth and a SoundFont: .wav files, and sound for TensorBoard.

FluidSynth is optional and runs as a separate program. On Debian: `apt install fluidsynth fluid-soundfont-gm`.
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
from rwkv_music.files import atomic_path, open_file

SAMPLE_RATE = 44_100  # Hz
SOUNDFONT_FOLDERS = ("/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts")
SOUNDFONTS = ("FluidR3_GM.sf2", "default-GM.sf2", "default-GM.sf3", "*.sf2", "*.sf3")  # in order of preference
TIMEOUT_S = 600


def find_soundfont() -> Path:
    """Return the path of an installed SoundFont. Raises UserError if there is none."""
    for pattern in SOUNDFONTS:
        for folder in SOUNDFONT_FOLDERS:
            for path in sorted(Path(folder).glob(pattern)):
                return path
    raise UserError(
        f"No SoundFont found in {', '.join(SOUNDFONT_FOLDERS)}; run `apt install fluid-soundfont-gm` or pass a file "
        "with --soundfont."
    )


def check_audio(soundfont: str | os.PathLike | None = None) -> Path:
    """Return the path of the SoundFont to use: `soundfont`, or an installed one by default.

    Raises UserError if FluidSynth or the SoundFont is missing, or if the file is not a SoundFont.
    """
    if shutil.which("fluidsynth") is None:
        raise UserError("Audio needs FluidSynth; run `apt install fluidsynth fluid-soundfont-gm`.")
    if soundfont is None:
        return find_soundfont()
    with explained(f"reading the SoundFont {soundfont}"), open_file(soundfont) as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:] != b"sfbk":  # FluidSynth would render silence without an error
        raise UserError(f"{soundfont} is not a SoundFont; give the path of an .sf2 or .sf3 file.")
    return Path(soundfont)


def render(midi: mido.MidiFile, out: str | os.PathLike, soundfont: str | os.PathLike | None = None) -> None:
    """Write `midi` to `out` atomically as a 16-bit stereo .wav at 44.1 kHz. Raises UserError if that fails."""
    font = check_audio(soundfont)
    out = Path(out)
    with tempfile.TemporaryDirectory() as folder, explained(f"writing the audio {out}"):
        score = Path(folder) / "score.mid"
        midi.save(score)
        with atomic_path(out) as partial:
            command = ["fluidsynth", "-ni", "-q", "-F", str(partial), "-T", "wav", "-r", str(SAMPLE_RATE), "-O", "s16"]
            try:
                done = subprocess.run(
                    [*command, str(font), str(score)], capture_output=True, text=True, timeout=TIMEOUT_S
                )
            except subprocess.TimeoutExpired as error:
                raise UserError(f"FluidSynth needs more than {TIMEOUT_S} s for {out}; shorten the piece.") from error
            if done.returncode or not partial.is_file():
                output = (done.stderr or done.stdout).strip().splitlines()
                reason = output[-1] if output else "no error message"
                raise UserError(f"FluidSynth could not render {out} ({reason}); check the SoundFont {font}.")


def sound(midi: mido.MidiFile, soundfont: str | os.PathLike | None = None) -> np.ndarray:
    """Return `midi` as mono audio at SAMPLE_RATE, float32 [1, n] in -1..1, for SummaryWriter.add_audio.

    Raises UserError as `render` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sound.wav"
        render(midi, path, soundfont)
        with wave.open(str(path)) as file:
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    return (frames.mean(axis=1, dtype=np.float32) / 32768)[None]
