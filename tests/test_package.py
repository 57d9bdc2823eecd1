"""The public names, which are imported on first access."""

import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution

from rwkv_music.checkpoint.weights import SHIPPED_MODEL, tokenizer_beside

PACKAGE = Path(__file__).parents[1] / "rwkv_music"


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


def test_the_wheel_contains_the_model_the_page_and_the_kernels(monkeypatch):
    monkeypatch.chdir(PACKAGE.parent)
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False  # what the version control lists is not needed, and slow to find
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    built = {Path(folder).resolve() / name for _, folder, _, names in build.data_files for name in names}
    page = {path for path in (PACKAGE / "play" / "page").rglob("*") if path.is_file()}
    kernels = {path for path in (PACKAGE / "cuda").iterdir() if path.suffix in (".cu", ".cuh", ".h", ".cpp")}
    assert page and kernels and built >= {SHIPPED_MODEL, tokenizer_beside(SHIPPED_MODEL), *page, *kernels}


def test_the_shipped_model_is_small():
    assert sum(path.stat().st_size for path in SHIPPED_MODEL.parent.iterdir()) <= 6_000_000
