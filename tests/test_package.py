"""The public names, and that naming the package imports nothing heavy."""

import subprocess
import sys

import pytest


def test_the_public_names_come_on_demand():
    program = (
        "import sys, rwkv_music\n"
        "assert 'torch' not in sys.modules\n"
        "import rwkv_music.model_v8\n"  # imports the module wkv7s, which must not hide the operator
        "from rwkv_music import RWKV, ModelConfig, wkv7s\n"
        "assert RWKV.__name__ == 'RWKV' and ModelConfig.__name__ == 'ModelConfig' and wkv7s.__name__ == 'wkv7s'\n"
        "assert all(getattr(rwkv_music, name) is not None for name in rwkv_music.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error():
    import rwkv_music

    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        rwkv_music.nonsense  # noqa: B018
