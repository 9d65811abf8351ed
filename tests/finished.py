"""A finished run on `walkers/tiny` with a tower of a few thousand parameters, for what works on trained runs."""

from importlib import import_module

from jaxreid.backbones import clip
from jaxreid.backbones.vit import ViTConfig
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.main import run_main
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_dataset, claim_workdir
from jaxreid.training import loop as train

SMALL = ViTConfig(width=32, depth=2, heads=2, patch=16, image_size=(64, 32), projection=16)
CONFIG = {
    "dataset.config": "tiny", "backbone.name": "small", "backbone.checkpoint": "", "epochs": 1,
    "extraction_batch_size": 16, "mesh.devices": 1, "evaluate_start": False,
    "batch.num_identities": 4, "batch.num_instances": 4,
}  # fmt: skip


def small_tower(patch):
    """Registers the tower under the name "small" while a MonkeyPatch lasts."""
    patch.setitem(clip.VISION_TOWERS, "small", SMALL)


def command_line():
    """The command line in a process of its own, where the tower has its name as well."""
    clip.VISION_TOWERS["small"] = SMALL
    run_main()


def finish_run(workdir, data_dir, **changes):
    """Trains the supervised baseline into `workdir`, as the command line does, and scores nothing."""
    config = import_module("configs.baseline").get_config()
    config.update_from_flattened_dict(CONFIG | changes)
    claim_workdir(workdir, config.to_dict())
    run = start_run(config, workdir, data_dir)
    claim_dataset(workdir, run.dataset, run.method.info)
    train.train(run, Evaluator(run))
    return workdir
