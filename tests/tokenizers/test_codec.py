"""The interface of all codecs."""

from rwkv_music.tokenizers.registry import make_codec


def test_fingerprint_depends_on_the_options():
    plain, *others = (
        make_codec("multitrack", tags=tags).fingerprint for tags in (None, {"a": ["x"]}, {"b": ["x"]}, {"a": ["y"]})
    )
    assert plain == make_codec("multitrack", tags={}).fingerprint
    assert len({plain, *others}) == 4
