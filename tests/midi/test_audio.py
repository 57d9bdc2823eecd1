"""Audio rendering, and the errors when a requirement is missing."""

import shutil
import wave

import mido
import numpy as np
import pytest

from rwkv_music.errors import UserError
from rwkv_music.midi import audio

needs_fluidsynth = pytest.mark.skipif(
    not shutil.which("fluidsynth") or not any(list(audio.Path(f).glob("*.sf[23]")) for f in audio.SOUNDFONT_FOLDERS),
    reason="apt install fluidsynth fluid-soundfont-gm",
)


@pytest.fixture
def a440() -> mido.MidiFile:
    """One second of A4 on a flute, then one second of silence."""
    track = mido.MidiTrack([mido.Message("program_change", program=73)])
    track += [mido.Message("note_on", note=69, velocity=100), mido.Message("note_off", note=69, time=960)]
    track.append(mido.MetaMessage("end_of_track", time=960))
    return mido.MidiFile(ticks_per_beat=480, tracks=[track])


@needs_fluidsynth
def test_rendered_note_has_its_pitch(a440, tmp_path):
    audio.render(a440, tmp_path / "a.wav")
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getsampwidth()) == (audio.SAMPLE_RATE, 2)
        assert 1.9 < file.getnframes() / audio.SAMPLE_RATE < 10
    samples = audio.sound(a440)
    assert samples.dtype == np.float32 and samples.shape[0] == 1 and 0.01 < np.abs(samples).max() <= 1
    held = samples[0, audio.SAMPLE_RATE // 5 : audio.SAMPLE_RATE]
    spectrum = np.abs(np.fft.rfft(held))
    frequencies = np.fft.rfftfreq(len(held), 1 / audio.SAMPLE_RATE)
    strongest = frequencies[(spectrum**2).argmax()] / 440
    assert abs(strongest - round(strongest)) < 0.03 and round(strongest) in (1, 2, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_missing_requirements_raise_errors_with_the_install_command(a440, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "SOUNDFONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(UserError, match="apt install fluid-soundfont-gm"):
        audio.find_soundfont()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install fluidsynth"):
        audio.render(a440, tmp_path / "a.wav")
    assert list(tmp_path.iterdir()) == []


@needs_fluidsynth
def test_invalid_soundfonts_leave_no_output(a440, tmp_path):
    with pytest.raises(UserError, match="missing.sf2"):
        audio.render(a440, tmp_path / "a.wav", tmp_path / "missing.sf2")
    (tmp_path / "broken.sf2").write_bytes(b"no sounds")
    with pytest.raises(UserError, match="broken.sf2"):
        audio.render(a440, tmp_path / "a.wav", tmp_path / "broken.sf2")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.sf2"]
