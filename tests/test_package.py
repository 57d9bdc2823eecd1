"""The public names, which are imported on first access."""

import subprocess
import sys

import pytest


def test_torch_is_imported_when_a_public_name_needs_it():
    program = (
        "import sys, rwkv_music\n"
        "import rwkv_music.__main__\n"
        "assert 'torch' not in sys.modules\n"
        "from rwkv_music import RWKV, ModelConfig, export, wkv7s\n"
        "assert RWKV.__name__ == 'RWKV' and ModelConfig.__name__ == 'ModelConfig' and wkv7s.__name__ == 'wkv7s'\n"
        "assert export.__name__ == 'export'\n"
        "assert all(getattr(rwkv_music, name) is not None for name in rwkv_music.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error():
    import rwkv_music

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        rwkv_music.nonsense  # noqa: B018


def test_public_names_are_documented():
    import rwkv_music
    from rwkv_music import RWKV

    functions = [rwkv_music.find_codec, rwkv_music.complete, rwkv_music.export, rwkv_music.wkv7s]
    methods = [RWKV.from_pretrained, RWKV.generate, RWKV.forward, RWKV.loss]
    for name in rwkv_music.__all__:
        value = getattr(rwkv_music, name)
        assert isinstance(value, str) or (value.__doc__ and not value.__doc__.startswith(f"{name}(")), name
    for function in (*functions, *methods):
        assert "Raises" in function.__doc__ or function in (RWKV.forward, RWKV.loss), function
        assert "return" in function.__annotations__, function
    for function in (rwkv_music.wkv7s, RWKV.generate, RWKV.forward, RWKV.loss):
        assert "[B, T" in function.__doc__, function
