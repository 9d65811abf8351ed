"""Runs of CG-CLIP: captions that it is trained with, and tests that need none."""

import shutil

import family
import numpy as np
import pytest
from messages import refuses
from test_training import run_training

from jaxreid.data.sidecars import MissingSidecar, Sidecar, sidecar_dir, write_sidecar
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_dataset
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

CHANGES = {
    **{"dataset.config": "tiny", "mesh.devices": 1, "evaluate_start": False, "extraction_batch_size": 8, "epochs": 2},
    **{"batch.num_identities": 4, "batch.num_instances": 2, "batch.seq_len": 3, "evaluation.seq_len": 3},
    **{"frames.height": 24, "frames.width": 24},
}


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    family.small_towers(monkeypatch)


def claim(run, train):
    claim_dataset(run.workdir, run.dataset, run.method.info, run.sidecars(train), train)


def test_a_run_goes_on_with_its_own_captions_and_is_scored_without_any(tmp_path, data_dir, tiny):
    own = tmp_path / "data"
    prepared = own / tiny.relative_to(data_dir)
    shutil.copytree(tiny, prepared)
    config, workdir = family.make_config("cg_clip", **CHANGES), tmp_path / "run"
    run, *_ = run_training(config, workdir, own, stop_after=1)
    claim(run, train=True)

    def features():
        again = start_run(config, workdir, own, train=False)
        claim(again, train=False)
        state, frozen, *_ = restore_judged(again)
        return Evaluator(again).features(variables_of(state, frozen), state.memory)

    first = features()
    captions = Sidecar.open(prepared, "captions")
    texts = [(name, captions.texts(name)) for name in captions.tracklets]
    write_sidecar(prepared, "captions", [(name, "a person") for name, _ in texts], {"model": "other"}, overwrite=True)
    with refuses(UserError, workdir, "sidecars.captions", "other, "):
        claim(start_run(config, workdir, own), train=True)
    replaced = features()
    shutil.rmtree(sidecar_dir(prepared, "captions"))
    with refuses(MissingSidecar, "captions", "import-sidecar"):
        start_run(config, workdir, own)
    for found in (replaced, features()):
        for split, arrays in first.items():
            np.testing.assert_array_equal(found[split]["feature"], arrays["feature"])
    # Neither a control nor a method without CMR asks for captions.
    for changes in ({"captions.source": "template"}, {"cmr.depth": 0}):
        other = start_run(family.make_config("cg_clip", **CHANGES, **changes), tmp_path / "other", own)
        assert not other.sidecars(train=True) and "captions" not in other.method.assumptions()
