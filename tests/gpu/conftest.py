"""Options of the GPU tests: --portable tests another build of the kernels, --small only small shapes."""

import pytest

from rwkv_music.cuda import build

SMALL = {"T": 100, "H": 3}  # the largest values of these parameters under --small


def pytest_addoption(parser):
    parser.addoption("--portable", action="store_true", help="test the kernels as PTX for compute capability 8.0")
    parser.addoption("--small", action="store_true", help=f"only shapes up to {SMALL}, for compute-sanitizer")


@pytest.fixture(autouse=True, scope="session")
def library(pytestconfig):
    """With --portable, make `build.load` build only PTX for 8.0, which the driver compiles for its GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if pytestconfig.getoption("--portable", False):
            patch.setattr(build, "FLAGS", [*build.FLAGS, "-gencode=arch=compute_80,code=compute_80"])
            patch.setattr(build, "architectures", list)
            build.load.cache_clear()
        yield


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--small", False):
        return
    small, large = [], []
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        (small if all(values.get(name, 0) <= limit for name, limit in SMALL.items()) else large).append(item)
    items[:] = small
    config.hook.pytest_deselected(items=large)
