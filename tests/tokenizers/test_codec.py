"""The interface of all codecs."""

from rwkv_music.tokenizers.registry import make_codec


def test_fingerprint_depends_on_the_options():
    assert make_codec("remi").fingerprint == make_codec("remi", positions_per_beat=24).fingerprint
    assert make_codec("remi").fingerprint != make_codec("remi", positions_per_beat=12).fingerprint
    assert make_codec("remi").fingerprint != make_codec("remi", n_velocities=16).fingerprint
