"""docs/methods.md: its method and config, in a folder of their own, trained by the command that the page types."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"


def blocks():
    """{file name: Python code} of the page."""
    return dict(
        re.findall(r"^## [^\n]*`(\w+\.py)`\n\n```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    )


def test_the_example_is_short():
    lines = [line for line in blocks()["prototypes.py"].splitlines() if line.strip()]
    assert len(lines) <= 60


def test_the_example_learns(tmp_path, data_dir, tiny):
    for name, code in blocks().items():
        (tmp_path / name).write_text(code)
    line = [sys.executable, "-m", "jaxreid.cli", "train", "--config=my_prototypes.py", f"--data_dir={data_dir}"]
    line += ["--workdir=run", "--config.dataset.config=tiny", "--config.batch.num_identities=4", "--config.epochs=3"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(PAGE.parent.parent)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss_prototypes"] for row in rows if row["kind"] == "train"]
    assert losses[-1] < losses[0]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["method"] == "prototypes" and results["assumptions"] == {"identity labels": "yes"}
    assert results["scores"] and results["notes"][0].startswith("Supervised")
