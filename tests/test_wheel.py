"""A built wheel is whole: configs, builders, weights and the page template work without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_an_installed_copy_runs_in_an_empty_folder(tmp_path):
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (scripts,) = site.glob("*.dist-info/entry_points.txt")
    assert "jaxreid = jaxreid.cli:main" in scripts.read_text().splitlines()
    line = [
        sys.executable,
        "-m",
        "jaxreid.main",
        "--config=hitpro",
        "--config.dataset.config=tiny",
        "--config.batch.num_prototypes=4",
        "--config.epochs=1",
        f"--data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    # The unpacked wheel comes before the repository on the path, and its builders before the repository's.
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import jaxreid; print(jaxreid.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(site))
    done = subprocess.run(line, cwd=empty, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report" / "index.html").exists()
