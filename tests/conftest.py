"""Tests run on eight virtual CPU devices and keep what they compiled between runs."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxreid" / "test-compiled"
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache)))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    parser.addoption("--extended", action="store_true", help="also run tests marked extended")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--extended"):
        left_out = [item for item in items if item.get_closest_marker("extended")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where data sets are built in this session."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def tiny(data_dir):
    """The built `walkers/tiny` data set."""
    from jaxreid.data.build import build

    return build("walkers", "tiny", data_dir=data_dir)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, data_dir, tiny):
    """The workdir of a run that was trained for an epoch on `walkers/tiny`; its tower is `finished.SMALL`."""
    from finished import finish_run, small_tower

    with pytest.MonkeyPatch.context() as patch:
        small_tower(patch)
        yield finish_run(tmp_path_factory.mktemp("finished") / "run", data_dir)
