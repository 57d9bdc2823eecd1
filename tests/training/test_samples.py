"""Samples in TensorBoard."""

import os

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from rwkv_music.midi import audio
from rwkv_music.midi.regions import Region
from rwkv_music.training import samples
from rwkv_music.training.metrics import Curves
from tests.damaged_json import DAMAGED_JSON
from tests.midi.midi_files import make_midi, note


def test_tensorboard_finds_the_image_and_the_sound(tmp_path, monkeypatch):
    """TensorBoard assigns each tag to one kind of data, so the two must not share a tag."""
    monkeypatch.setattr(audio, "check_audio", lambda: None)
    monkeypatch.setattr(audio, "sound", lambda midi: np.zeros((1, 100), np.float32))
    curves = Curves(tmp_path, 0, enabled=True)
    for step in (10, 20):
        midi = make_midi(note(0, 480, 60))
        sample = samples.Sample("completion", "1 bar", "a.mid", midi, [Region(0, 1)], make_midi(note(0, 480, 72)))
        samples.show(sample, curves, step, tmp_path / "samples")
    curves.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {kind: list(events.PluginTagToContent(kind)) for kind in ("images", "audio")}
    assert found == {"images": ["samples/completion"], "audio": ["samples/completion_sound"]}
    assert [len(events.Tensors(tag)) for tags in found.values() for tag in tags] == [2, 2]


def test_the_file_name_of_a_piece(bach_data):
    names = [samples.piece_name(bach_data, "val", number) for number in range(2)]
    assert all(name.endswith(".mid") for name in names) and names[0] != names[1]
    assert samples.piece_name(bach_data, "val", 10**6) == ""


@pytest.mark.parametrize("content", [*DAMAGED_JSON.values(), None], ids=[*DAMAGED_JSON, "pipe"])
def test_a_damaged_list_of_pieces_costs_only_the_name(content, tmp_path):
    if content is None:
        os.mkfifo(tmp_path / "pieces.jsonl")
    else:
        (tmp_path / "pieces.jsonl").write_bytes(content)
    assert samples.piece_name(tmp_path, "val", 0) == ""
