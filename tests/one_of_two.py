"""One of two processes with three devices each, for test_agreement.py: python one_of_two.py INDEX PORT DATA_DIR DIR

Does things that go wrong on one process only, and writes what each case came to into DIR/INDEX.json.
"""

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxreid.arrays import masked_mean
from jaxreid.augment import Pixels
from jaxreid.backbones import pretrained
from jaxreid.data import build
from jaxreid.data.dataset import open_dataset
from jaxreid.data.extras import Extra, ExtraReader
from jaxreid.data.loader import LoaderOptions
from jaxreid.devices import parallel, processes
from jaxreid.evaluation.extract import Extractor, tracklet_features
from jaxreid.methods.method import Evaluation
from jaxreid.run.model import start_run
from jaxreid.run.workdirs import claim_workdir
from jaxreid.training.checkpoints import Checkpoints, newest_whole
from jaxreid.training.start import init_variables

BATCH, SIZE, RULE = 6, 16, Evaluation("dense", 2)


def config(**changes):
    from configs.baseline import get_config

    found = get_config()
    small = {
        "dataset.config": "tiny",
        "batch.num_identities": 3,
        "batch.num_instances": 4,
        "extraction_batch_size": BATCH,
    }
    found.update_from_flattened_dict(small | changes)
    return found


def picture(variables, memory, batch):
    """A feature that shows whose frames these are, by way of weights that are split over all devices, and whose key
    points."""
    pixels = batch.frames.reshape(len(batch.frames), -1, SIZE * SIZE * 3).mean(1)
    points = masked_mean(batch.extras["keypoints"].reshape(*batch.frame_mask.shape, -1), batch.frame_mask)
    return {"feature": jnp.concatenate([pixels @ variables["weights"], points], axis=-1)}


def features(mesh, split, reader=None, rows=None):
    weights = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, 24)).astype(np.float32)
    weights = parallel.place(weights, NamedSharding(mesh, P(parallel.AXES)))
    extractor = Extractor(picture, Pixels((0.5,) * 3, (0.5,) * 3, jnp.float32), mesh, BATCH)
    options, reader = LoaderOptions(SIZE, SIZE), reader or split.reader(cache=False)
    extras = ExtraReader(split, reader, {"keypoints": Extra((17, 3))})
    given = {"weights": weights}, {}, split, RULE, options, reader, rows, extras
    return tracklet_features(extractor, *given)["feature"]


def outcome(case):
    """What a case returns, or the class and message of its error."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = case()
        return {"value": value, "warnings": [str(warning.message) for warning in caught]}
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}


def main(index, port, data_dir, folder):
    processes.start(f"localhost:{port}", 2, index, 30)
    split = open_dataset(config().dataset, data_dir).query
    mine = {"mesh": [(device.process_index, device.id) for device in parallel.make_mesh(fsdp=2).devices.flat]}
    mine["local"] = parallel.local_mesh(parallel.make_mesh(fsdp=2)).size

    # --- devices of both processes by turns
    mixed = Mesh(np.array(jax.devices()).reshape(2, 3).T.reshape(3, 2), parallel.AXES)
    np.save(folder / f"features.{index}.npy", features(mixed, split))

    # --- a frame that only one process reads is damaged
    reader = split.reader(cache=False)
    encoded = reader.encoded
    reader.encoded = lambda row: [b"damaged"] * len(encoded(row)) if row == 0 else encoded(row)
    mine["frame"] = outcome(lambda: features(parallel.make_mesh(), split, reader).tolist())

    # --- a checkpoint of which only one process reads the damaged part
    state = {"bank": np.arange(6 * 2**17, dtype=np.float32).reshape(6, -1)}
    place = parallel.state_sharding(state, parallel.make_mesh(fsdp=6))

    def write(name, damaged):
        checkpoints = Checkpoints(folder / name)
        for number in (1, 2):
            checkpoints.save(number, parallel.place(state, place), {"epoch": number})
        checkpoints.save_frozen("stage", parallel.place(state, place))
        checkpoints.wait()
        if index == 0:
            for path in damaged:
                parts = list((folder / name / "checkpoints" / path).glob("ocdbt.process_1/d/*"))
                assert parts
                for part in parts:
                    part.write_bytes(part.read_bytes()[:100])
        processes.agree()
        return checkpoints

    def restore(checkpoints):
        number, found = newest_whole(checkpoints, lambda number: (number, checkpoints.restore(number, state, place)))
        np.testing.assert_array_equal(parallel.to_host(found)["bank"], state["bank"])
        return number, checkpoints.numbers()

    newest = write("newest", ["epochs/2/state"])
    mine["newest"] = outcome(lambda: restore(newest))
    every = write("every", ["epochs/1/state", "epochs/2/state", "frozen/stage"])
    mine["every"] = outcome(lambda: restore(every))
    mine["frozen"] = outcome(lambda: every.restore_frozen("stage", state, place))
    with mock.patch.object(Checkpoints, "numbers", lambda _: [2 - index]):
        mine["numbers"] = outcome(lambda: Checkpoints(folder / "newest"))

    # --- a data set that one process cannot open
    elsewhere = data_dir if index == 0 else folder / "nothing.txt"
    (folder / "nothing.txt").touch()
    mine["data set"] = outcome(lambda: start_run(config(), folder, elsewhere).dataset.name)
    published = config(**{"dataset.name": "mars", "dataset.config": "", "dataset.train": "train"})
    tiny = open_dataset(config().dataset, data_dir).directory
    with mock.patch.object(build, "find", lambda *_: None if index else tiny):
        mine["dry run"] = outcome(lambda: start_run(published, folder, folder, dry=True).dataset.name)
    other = {"dataset.config": "tiny"} if index == 0 else {"dataset.config": "tiny", "dataset.query": "gallery"}
    mine["other data"] = outcome(lambda: start_run(config(**other), folder, data_dir).dataset.name)

    # --- weights that one process has not got
    run = start_run(config(), folder, data_dir)
    (backbone,) = run.method.backbones()
    weights = [dataclasses.replace(backbone, name=str(folder / "missing.safetensors")) if index else backbone]
    with mock.patch.object(run.method, "backbones", lambda: weights):
        mine["weights"] = outcome(lambda: init_variables(run))

    load = pretrained.load_variables
    with mock.patch.object(pretrained, "load_variables", lambda *of: jax.tree.map(lambda x: x + index, load(*of))):
        mine["other weights"] = outcome(lambda: init_variables(run))

    # --- a workdir that one process does not see
    def claim():
        with processes.main_first():
            claim_workdir(folder / f"workdir-{index}", config().to_dict())

    mine["workdir"] = outcome(claim)
    mine["config"] = outcome(lambda: processes.same("command line", {"config": config(seed=index + 1).to_dict()}))

    # --- process 0 fails before the others begin; a fault of the program
    def first(error):
        with processes.main_first():
            if index == 0:
                raise error

    mine["first"] = outcome(lambda: first(OSError(28, "No space left on device", "/somewhere")))
    mine["fault"] = outcome(lambda: first(KeyError("unforeseen")))
    mine["of main"] = outcome(lambda: processes.of_main(lambda: index + 7))
    (folder / f"{index}.json").write_text(json.dumps(mine))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
