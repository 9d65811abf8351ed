"""Tests run on eight virtual CPU devices; the workers of a session share what they compile, build and train.

Options:
  --extended    also the tests marked `extended`.
  --parity N    only the tests marked `parity`, of which at least N must run, and none may be skipped.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import jaxtyping
import pytest
from shape_checks import ROOMS

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxreid" / "test-compiled"
# An eighth of the time for code that runs a few times.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)


def known_flags():
    """The flags above where this version of XLA knows them; it ends a process that is given others."""
    known = CACHE / f"flags-{jaxlib.__version__}"
    if not known.exists():
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_TO_COMPILE}
        line = [sys.executable, "-c", "import jax; jax.devices()"]
        done = subprocess.run(line, env=environment, capture_output=True, check=False)
        CACHE.mkdir(parents=True, exist_ok=True)
        known.write_text("" if done.returncode else QUICK_TO_COMPILE)
    return known.read_text()


# In the environment, so that workers and subprocesses of tests compile alike and find what others compiled.
os.environ.setdefault("XLA_FLAGS", known_flags())
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Before anything of them is imported.
jaxtyping.install_import_hook([f"jaxreid.{room}" for room in ROOMS], "shape_checks.checked")

REFERENCES = ("torch", "transformers")


def pytest_xdist_auto_num_workers(config):
    """A few files run sooner in one process than in workers that have to start."""
    return 0 if len(config.args) <= 2 and all(".py" in argument for argument in config.args) else None


def pytest_addoption(parser):
    parser.addoption("--extended", action="store_true", help="also run tests marked extended")
    parser.addoption(
        "--parity", type=int, metavar="N", help="run tests marked parity alone; at least N, and skip none of them"
    )


def pytest_collection_modifyitems(config, items):
    def wanted(item):
        extended = config.getoption("--extended") or not item.get_closest_marker("extended")
        return extended and (config.getoption("--parity") is None or item.get_closest_marker("parity"))

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def pytest_runtest_setup(item):
    if item.get_closest_marker("parity") and item.config.getoption("--parity") is None:
        for name in REFERENCES:
            if importlib.util.find_spec(name) is None:
                pytest.skip(f"compares with {name}, which is not installed")


class ParityCount:
    """Fails a session in which a parity test was skipped or too few of them ran."""

    def __init__(self, least):
        self.least, self.passed, self.skipped = least, 0, []

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session):
        if self.skipped or self.passed < self.least:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.line(f"parity tests that ran: {self.passed}, of at least {self.least}")
        for name in self.skipped:
            terminalreporter.line(f"FAILED {name}: was skipped", red=True)


def pytest_configure(config):
    least = config.getoption("--parity")
    if least is not None and not hasattr(config, "workerinput"):  # what pytest-xdist's workers have
        config.pluginmanager.register(ParityCount(least))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all workers of this session see."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def once(shared):
    """Makes a folder that is shared by all workers: `once(name, make)`, where the first calls `make(folder)`."""
    from jaxreid.files import held

    def folder(name, make):
        path, whole = shared / name, shared / f"{name}.whole"
        with held(shared / f"{name}.lock", wait=-1):
            if not whole.exists():
                make(path)
                whole.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def data_dir(shared):
    """Where data sets are built in this session."""
    return shared / "data"


@pytest.fixture(scope="session")
def tiny(data_dir):
    """The built `walkers/tiny` data set."""
    from jaxreid.data.build import build

    return build("walkers", "tiny", data_dir=data_dir)


@pytest.fixture(scope="session")
def workdir(once, data_dir, tiny):
    """The workdir of a run that was trained for an epoch on `walkers/tiny`; its tower is `finished.SMALL`."""
    from finished import finish_run, small_tower

    with pytest.MonkeyPatch.context() as patch:
        small_tower(patch)
        yield once("finished", lambda folder: finish_run(folder, data_dir))
