"""Released checkpoints as workdirs: random tensors of exactly the released names compute here what a restatement of the
released codes computes from them; every tensor is accounted for; what is not such a file is refused by name."""

import dataclasses
import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_files
from messages import refuses, says
from references.released_forward import Net, softmax
from released_files import IDENTITIES, random_tensors, smaller

import jaxreid
from jaxreid.backbones import clip, text
from jaxreid.backbones.text import TextConfig
from jaxreid.backbones.vit import ViTConfig
from jaxreid.backbones.word_table import walkers_words
from jaxreid.data.batch import Batch
from jaxreid.data.dataset import plan_dataset
from jaxreid.dataset_info import dataset_info
from jaxreid.devices.parallel import make_mesh
from jaxreid.errors import UserError
from jaxreid.evaluation.evaluator import Evaluator
from jaxreid.methods.method import find_method
from jaxreid.run.model import make_model, open_model, start_run
from jaxreid.run.workdirs import claim_dataset
from jaxreid.training.checkpoints import Checkpoints
from jaxreid.training.importing import fit, import_released
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

IMAGE = ViTConfig(width=24, depth=2, heads=4, patch=16, image_size=(64, 32), projection=16)
TEXT = TextConfig(width=16, depth=2, heads=2, projection=16, vocabulary=len(walkers_words().clip_ids))
CLIPS, FRAMES = 4, 3
CAMERA = {"sie.columns": ("camera_index",)}
# Of every file: the config, and what its tensors ask for beyond the config's default.
USERS = {
    "clip_reid": ("clip_reid", CAMERA),
    "tf_clip": ("tf_clip", {"ssp.depth": 2, "ssp.self_attention": True}),
    "tf_clip_older": ("tf_clip", {"ssp.depth": 2, "ssp.form": "simple"}),
    "vsla_clip": ("vsla_clip", {"adapters.width": 8}),
    "vsla_clip_platform_prompts": ("vsla_clip", {"adapters.width": 8, "platform_prompts.blocks": 2}),
    "clip_xfd": ("clip_xfd", {"adapters.width": 8, "released": True}),
    "vld": ("lsmrl", {"stfl_split": (2, 0, 0)}),
}
SHIFTED = {"clip_xfd": {f"bottleneck{end}.bias": np.float32(0.1) for end in ("", "_proj")}}  # not 0 in these files
ALL = pytest.mark.parametrize("name", USERS)


@pytest.fixture(autouse=True)
def small_towers(monkeypatch):
    monkeypatch.setitem(clip.VISION_TOWERS, "small", IMAGE)
    monkeypatch.setitem(text.TEXT_TOWERS, "small", TEXT)


def make_config(name, preset="", **changes):
    config = importlib.import_module(f"configs.{name}").get_config(preset)
    if not preset:
        config.dataset.config, config.backbone.name, config.backbone.checkpoint = "tiny", "small", ""
        config.extraction_batch_size = 8
    config.update_from_flattened_dict(changes)
    return config


def shapes_of(name):
    return getattr(released_files, name)()


def write(folder, name, **changed):
    """The path of a small file of a release, and its tensors; `changed` by name, None = left out."""
    tensors = random_tensors(smaller(shapes_of(name)))
    tensors |= {key: tensors[key] + shift for key, shift in SHIFTED.get(name, {}).items()} | changed
    path = folder / f"{name}.safetensors"
    released_files.safetensors.numpy.save_file({k: v for k, v in tensors.items() if v is not None}, path)
    return path, tensors


@pytest.fixture(scope="module")
def imported(tmp_path_factory, data_dir, tiny):
    """name → (lines that were said, workdir, tensors), made once of each."""
    made = {}

    def of(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            path, tensors = write(folder, name)
            config, changes = USERS[name]
            lines = import_released(make_config(config, **changes), [path], folder / "run", data_dir)
            made[name] = SimpleNamespace(lines=lines, workdir=folder / "run", tensors=tensors, path=path)
        return made[name]

    return of


def make_batch():
    unknown = jnp.full(CLIPS, -1, jnp.int32)
    columns = ("part", "pair", "platform", "clothes", "session", "identity")
    return Batch(
        frames=jax.random.normal(jax.random.key(0), (CLIPS, FRAMES, 64, 32, 3)),
        frame_mask=jnp.ones((CLIPS, FRAMES), bool),
        tracklet=jnp.arange(CLIPS),
        camera=unknown,
        camera_index=jnp.array([1, 0, -1, 7], jnp.int32),  # the last two have no row in any table
        modality=jnp.array([0, 1, 0, 1], jnp.int32),
        geometry=jnp.zeros((CLIPS, 3)),
        valid=jnp.ones(CLIPS, bool),
        **dict.fromkeys(columns, unknown),
    )


def side(net, batch):
    """Rows of the camera table [B, D], zeros where there is none."""
    table, index = net.t["cv_embed"], np.asarray(batch.camera_index)
    known = (index >= 0) & (index < len(table))
    return np.where(known[:, None], table[np.clip(index, 0, len(table) - 1)], 0.0)


def of_clips(x):
    """[B·T, …] → means over the frames."""
    return x.reshape(CLIPS, FRAMES, *x.shape[1:]).mean(1)


def scored(x, net, key):
    """[B·T, D] → sums over the frames, weighted by a softmax of their scores."""
    x = x.reshape(CLIPS, FRAMES, -1)
    return (softmax(net.linear(key, x)[..., 0])[..., None] * x).sum(1)


def expected_of(name, net, batch):
    """(features by our names, sentences, products with a bank; logits by feature), as the released code has them."""
    frames = np.asarray(batch.frames)
    found, logits = {}, {}
    if name.startswith("tf_clip"):
        ssp, tmd = ("SSP", "TMD") if name == "tf_clip" else ("prompts_generator", "SAT")
        tokens, joint = net.image(frames, 4, side(net, batch))
        g_t = net.diffusion(tokens, FRAMES, 4, tmd)
        found = {"last": of_clips(tokens[:, 0]), "projected": of_clips(joint[:, 0]), "temporal": of_clips(g_t)}
        neck = {"last": ("bottleneck", "classifier2"), "projected": ("bottleneck_proj", "classifier_proj")}
        neck["temporal"] = "bottleneck_proj_temp2", "classifier_proj_temp"
        logits["frames"] = net.linear("classifier_proj_temp", net.batch_norm("bottleneck_proj_temp", g_t))
        bank = np.random.default_rng(5).normal(size=(IDENTITIES, 16))
        rows = bank + net.prompt(bank, of_clips(joint), 8, ssp)
        found["bank"], found["similar"] = bank, np.einsum("be,bce->bc", found["projected"], rows)
    else:
        prompts = None
        if name in ("vsla_clip_platform_prompts", "clip_xfd"):  # the mean of the rows where the camera is unknown
            table, index = net.t["cv_embed"], np.asarray(batch.camera_index)
            known = (index >= 0) & (index < table.shape[2])
            mean = table.mean(2, keepdims=True)
            prompts = np.where(known[:, None], table[:, :, np.clip(index, 0, table.shape[2] - 1)], mean)
        tokens, joint = net.image(frames, 4, side(net, batch) if name == "clip_reid" else None, prompts)
        found = {"last": of_clips(tokens[:, 0]), "projected": of_clips(joint[:, 0])}
        neck = {"last": ("bottleneck", "classifier"), "projected": ("bottleneck_proj", "classifier_proj")}
        if name == "clip_xfd":
            found = {"last": scored(tokens[:, 0], net, "temporal_attn.fc")}
            found["projected"] = scored(joint[:, 0], net, "temporal_attn_proj.fc")
        if name == "vld":
            neck = {"last": ("classifier.BN", "classifier.classifier")}
            neck["projected"] = "classifier_proj.BN", "classifier_proj.classifier"
        found["sentences"] = net.sentences(2, end={"clip_reid": 11, "vld": 15}.get(name, 22))
    for feature, (norm, classifier) in neck.items():
        found[f"normed {feature}"] = net.batch_norm(norm, found[feature])
        logits[feature] = net.linear(classifier, found[f"normed {feature}"])
    return found, logits


@ALL
def test_what_is_imported_computes_what_the_released_code_computes(imported, name):
    made, batch = imported(name), make_batch()
    model = open_model(made.workdir)
    state, frozen, epochs, _ = restore_judged(model)
    assert epochs == sum(stage.epochs for stage in model.method.stages())
    found, logits = expected_of(name, Net(made.tensors), batch)

    def forward(network):
        if name == "vld":
            ours = network.encode(batch, state.memory.bank, False)
            return ours, network.heads(ours | {"sequence": ours["solo"]}, batch.valid, False), None
        ours = network.encode(batch, False)
        return ours, network.logits(ours, batch, False), network.similar(ours, found.get("bank", 0.0), batch, False)

    variables = variables_of(state, frozen)
    if "bank" not in found:
        found["bank"] = np.zeros((IDENTITIES, 16))
    found["bank"] = jnp.asarray(found["bank"], jnp.float32)
    ours, ours_logits, similar = jax.jit(lambda v: model.method.network.apply(v, method=forward))(variables)
    features = ("last", "projected", "temporal") if name.startswith("tf_clip") else ("last", "projected")
    for feature in features:
        np.testing.assert_allclose(ours[feature], found[feature], atol=2e-4, err_msg=feature)
    for feature, expected in logits.items():
        np.testing.assert_allclose(ours_logits[feature], expected, atol=5e-4, err_msg=feature)
    if "similar" in found:
        np.testing.assert_allclose(similar, found["similar"], atol=2e-3)
    if "sentences" in found:  # the bank is made of the words that were imported
        np.testing.assert_allclose(state.memory.bank, found["sentences"], atol=2e-4)
    if name != "vld":  # test features stand behind their norms in this preset
        embedded = jax.jit(model.method.embed)(variables, state.memory, batch)["feature"]
        expected = np.concatenate([found[f"normed {feature}"] for feature in features], axis=-1)
        np.testing.assert_allclose(embedded, expected, atol=5e-4)


# ------------------------------------------------------------------------------------------- what is said of a file


@ALL
def test_every_tensor_is_used_or_listed(imported, name):
    made = imported(name)
    record = json.loads((made.workdir / "imported.json").read_text())
    assert record["used"] + len(record["unused"]) == len(made.tensors)
    names = {key.replace("prompts_generator.", "SSP.").replace("SAT.", "TMD.") for key in made.tensors}
    assert record["unused"].keys() <= names
    expected = {key for key in names if key.endswith("num_batches_tracked")}
    if name.startswith("tf_clip"):
        expected |= {"classifier_proj_temp2.weight"}
        expected |= {"SSP.alpha", "SSP.norm.weight", "SSP.norm.bias"} if name == "tf_clip" else set()
    if name == "clip_xfd":
        expected |= {"temporal_attn.fc.bias", "temporal_attn_proj.fc.bias"}
    if name == "vld":
        own = ("prompt_embedding", "attn.", "classifier_STP.", "classifier_proj_STP.", "ln_post2.", "logit_scale")
        expected |= {key for key in names if key.startswith(own)}
        assert {path.split("/")[0] for path in record["drawn"]} == {
            *("diffusion", "interaction", "necks_sequence", "modality_kernel", "modality_bias")
        }
    else:
        assert not record["drawn"]
    assert record["unused"].keys() == expected
    says(made.lines, str(record["used"]), "used", str(len(expected)), "not")
    says(made.lines, f"{IDENTITIES} identities", "walkers/tiny", "6")
    assert not any("unlike" in line.lower() for line in made.lines)


def test_sizes_are_those_of_the_tensors(imported):
    assert jaxreid.load(imported("tf_clip").workdir).info.num_classes == IDENTITIES
    cameras = {name: open_model(imported(name).workdir).method.info.cameras.tolist() for name in USERS}
    tiny = cameras["vsla_clip"]  # knows none apart, and so has the data set's
    assert len(tiny) == 4
    assert cameras["vsla_clip_platform_prompts"] == tiny[:2] and cameras["clip_reid"] == tiny[:3]
    assert cameras["tf_clip"][:4] == tiny and len(set(cameras["tf_clip"])) == 6
    says(imported("tf_clip").lines, "6 cameras", "4 in training")


@pytest.mark.parametrize("name", ["clip_reid", pytest.param("vld", marks=pytest.mark.extended)])
def test_the_workdir_opens_in_evaluate_and_embed(imported, data_dir, name):
    made = imported(name)
    config, changes = USERS[name]
    run = start_run(make_config(config, **changes), made.workdir, data_dir, train=False)
    claim_dataset(run.workdir, run.dataset, run.method.info, run.sidecars(False), False)
    state, frozen, epoch, done = restore_judged(run)
    found = Evaluator(run).final(variables_of(state, frozen), state.memory, epoch, done)
    assert found.results["scores"] and found.results["epochs_done"] == found.results["epochs"]
    says(found.results["notes"], made.path.name, "nothing was trained here")
    query = run.dataset.query
    embedded = jaxreid.load(made.workdir, batch_size=8).embed_split(query, rows=np.arange(2))
    np.testing.assert_allclose(embedded, found.features[query.name][:2], atol=1e-5)


def test_the_data_set_need_not_be_there(tmp_path):
    """A preset of a paper, of whose data set nothing but the published size is known."""
    path, _ = write(tmp_path, "tf_clip")
    changes = {"backbone.name": "small", "backbone.checkpoint": "", "frames.height": 64, "frames.width": 32}
    config = make_config("tf_clip", "mars", **changes, **{"ssp.self_attention": True})
    lines = import_released(config, [path], tmp_path / "run", tmp_path / "no data")
    says(lines, f"{IDENTITIES} identities", "mars", "625")
    embedder = jaxreid.load(tmp_path / "run", batch_size=8)
    assert len(embedder.info.cameras) == 6
    feature = embedder.embed(np.random.default_rng(0).integers(0, 256, (3, 40, 20, 3), np.uint8))
    assert feature.shape == (24 + 16 + 24,) and abs(np.linalg.norm(feature) - 1) < 1e-5


def test_tensors_may_come_in_several_files(imported, tmp_path, data_dir):
    made = imported("vsla_clip")
    halves = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for number, half in enumerate(halves):
        part = {f"module.{key}": made.tensors[key] for key in list(made.tensors)[number::2]}
        released_files.safetensors.numpy.save_file(part, half)
    config, changes = USERS["vsla_clip"]
    import_released(make_config(config, **changes), halves, tmp_path / "run", data_dir)
    one, other = (jax.device_get(restore_judged(open_model(at))[:2]) for at in (made.workdir, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


# --------------------------------------------------------------------------------------------------- at full size


@pytest.mark.parametrize(
    ("name", "config", "changes", "parameters"),
    [
        # The tower at 256 × 128, heads of 5 identities, TMD, and SSP: the published counts (docs/clip_reid.md).
        ("tf_clip", "tf_clip", {"ssp.self_attention": True}, 86_140_416 + 10_042_368 + 9_193_984),
        ("vsla_clip_platform_prompts", "vsla_clip", {"platform_prompts.blocks": 9}, None),
        ("clip_xfd", "clip_xfd", {"released": True}, None),
        pytest.param("tf_clip_older", "tf_clip", {"ssp.form": "simple"}, None, marks=pytest.mark.extended),
        pytest.param("clip_reid", "clip_reid", CAMERA, None, marks=pytest.mark.extended),
        pytest.param("vsla_clip", "vsla_clip", {}, None, marks=pytest.mark.extended),
        pytest.param("vld", "lsmrl", {}, None, marks=pytest.mark.extended),
    ],
)
def test_the_published_sizes_fit_the_presets_of_the_papers(name, config, changes, parameters):
    """Zeros; nothing is computed."""
    preset = {"lsmrl": "hitsz_vcm", "clip_xfd": "detreidx_b16"}.get(config, "mars")
    config = make_config(config, preset, **changes)
    released = find_method(config.method).released
    shapes = shapes_of(name)
    tensors = released.canonical({key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})
    sizes = released.sizes({key: tensor.shape for key, tensor in tensors.items()}, config)
    assert sizes.identities == IDENTITIES
    size = config.frames.height, config.frames.width
    info = dataset_info(plan_dataset(config.dataset), find_method(config.method), size)
    cameras = np.arange(sizes.cameras or 1)
    info = dataclasses.replace(info, num_classes=sizes.identities, cameras=cameras)
    run = make_model(config, "nowhere", make_mesh(), info, dry=True)
    found = fit(released, tensors, run, name)
    assert found.used + len(found.unused) == len(tensors)
    if parameters:
        heads = IDENTITIES * (768 + 512 + 768) + (768 + 512 + 768 + 768) + 6 * 768  # classifiers, norms, cameras
        statistics = ("/mean", "/var")
        kept = sum(array.size for path, array in found.arrays.items() if not path.endswith(statistics))
        assert kept == parameters + heads


# -------------------------------------------------------------------------------------------------------- bad input


def refused(folder, data_dir, path, config, *parts, kind=UserError, **changes):
    """An import ends with an error that names every part, and leaves nothing behind."""
    before = sorted(folder.iterdir())
    paths = path if isinstance(path, list) else [path]
    with refuses(kind, *parts):
        import_released(make_config(config, **changes), paths, folder / "run", data_dir)
    assert sorted(folder.iterdir()) == before


TF = USERS["tf_clip"][1]


def test_files_that_cannot_be_read_are_named(tmp_path, data_dir, tiny):
    path, _ = write(tmp_path, "tf_clip")
    refused(tmp_path, data_dir, tmp_path / "gone.pth", "tf_clip", "gone.pth", **TF)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(tmp_path, data_dir, path, "tf_clip", path, "cut off", **TF)


@pytest.mark.parametrize(
    ("file", "config", "whose"),
    [
        ("vsla_clip", "tf_clip", "VSLA-CLIP"),
        ("vsla_clip", "clip_reid", "VSLA-CLIP"),
        ("clip_reid", "vsla_clip", "CLIP-ReID"),
        ("tf_clip_older", "lsmrl", "TF-CLIP"),
        ("vld", "clip_reid", "VLD"),
    ],
)
def test_files_of_another_method_are_refused_by_its_name(tmp_path, data_dir, tiny, file, config, whose):
    path, _ = write(tmp_path, file)
    changes = USERS["vld"][1] if config == "lsmrl" else {}
    refused(tmp_path, data_dir, path, config, path, f"{whose}'s released code", config, **changes)


def test_files_of_no_known_method_are_refused(tmp_path, data_dir, tiny):
    path = tmp_path / "other.safetensors"
    released_files.safetensors.numpy.save_file({"backbone.fc.weight": np.ones((2, 2), np.float32)}, path)
    refused(tmp_path, data_dir, path, "tf_clip", path, "TF-CLIP's released code", "backbone.fc.weight", **TF)
    refused(tmp_path, data_dir, path, "baseline", "'baseline'", "clip_reid", "tf_clip", "vsla_clip", "lsmrl")


@pytest.mark.parametrize(
    ("file", "config", "changes", "flag"),
    [
        ("tf_clip", "tf_clip", {"ssp.depth": 2}, "--config.ssp.self_attention=True"),
        ("tf_clip_older", "tf_clip", TF, "--config.ssp.form=simple"),
        ("tf_clip", "tf_clip", TF | {"ssp.depth": 1}, "--config.ssp.depth=2"),
        ("clip_xfd", "clip_xfd", {"adapters.width": 8}, "--config.released=True"),
        ("clip_reid", "clip_reid", {}, "--config.sie.columns=('camera_index',)"),
        ("vsla_clip", "vsla_clip", {}, "--config.adapters.width=8"),
        ("vsla_clip_platform_prompts", "vsla_clip", {"adapters.width": 8}, "--config.platform_prompts.blocks=2"),
        ("vsla_clip", "vsla_clip", {"backbone.name": "walkers_vit_tiny"}, "--config.backbone.name=small"),
    ],
)
def test_what_a_file_was_trained_with_is_told_as_flags(tmp_path, data_dir, tiny, file, config, changes, flag):
    path, _ = write(tmp_path, file)
    refused(tmp_path, data_dir, path, config, path, flag, **changes)


def test_tensors_that_do_not_fit_are_all_named(tmp_path, data_dir, tiny):
    key = "image_encoder.transformer.resblocks.1.mlp.c_fc"
    changed = {
        "TMD.resblocks.0.message_fc.bias": None,
        "TAT.weight": np.ones(3, np.float32),
        f"{key}.weight": np.ones((5, 24), np.float32),
        f"{key}.bias": np.full(96, np.nan, np.float32),
        "bottleneck.running_var": np.ones(24, np.int64),
    }
    path, _ = write(tmp_path, "tf_clip", **changed)
    parts = ("missing (1): TMD.resblocks.0.message_fc.bias", "left over (1): TAT.weight", f"{key}.weight (5, 24)")
    parts += ("unusable (2)", f"{key}.bias (not finite)", "bottleneck.running_var (int64")
    refused(tmp_path, data_dir, path, "tf_clip", path, *parts, **TF)
    path, _ = write(tmp_path, "tf_clip", **{"classifier_proj.weight": np.ones((7, 16), np.float32)})
    refused(tmp_path, data_dir, path, "tf_clip", "classifier_proj.weight (7, 16)", **TF)


def test_files_that_contradict_each_other_are_refused(tmp_path, data_dir, tiny):
    path, tensors = write(tmp_path, "tf_clip")
    other = tmp_path / "other.safetensors"
    released_files.safetensors.numpy.save_file({"cv_embed": tensors["cv_embed"] + 1}, other)
    refused(tmp_path, data_dir, [path, other], "tf_clip", other, "cv_embed", **TF)


def test_what_is_unlike_a_released_file_is_told(tmp_path, data_dir, tiny):
    words = np.random.default_rng(0).normal(size=(1, 5, 16)).astype(np.float32)
    changed = {"prompt_learner.token_prefix": words, "bottleneck.bias": np.ones(24, np.float32)}
    path, _ = write(tmp_path, "clip_reid", **changed)
    lines = import_released(make_config("clip_reid", **CAMERA), [path], tmp_path / "run", data_dir)
    says(lines, "unlike", "bottleneck.bias", "not 0")
    says(lines, "unlike", "prompt_learner.token_prefix", "twice")


def test_a_workdir_is_whole_or_not_there(imported, tmp_path, data_dir, monkeypatch):
    made = imported("tf_clip")
    config = make_config("tf_clip", **TF)
    with refuses(UserError, made.workdir, "--workdir"):
        import_released(config, [made.path], made.workdir, data_dir)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", fail)
    refused(tmp_path, data_dir, made.path, "tf_clip", tmp_path / "run", "No space left", **TF)


def test_the_command_reads_files_and_flags_in_any_order(tmp_path, data_dir):
    """In a process of its own, where the towers have no name: it gets as far as to tell which values to change."""
    path, _ = write(tmp_path, "vsla_clip")
    line = ["import-checkpoint", "--config=vsla_clip", path, "--workdir", tmp_path / "run"]
    line = [sys.executable, "-m", "jaxreid.cli", *map(str, line)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert found.returncode == 2 and "Traceback" not in found.stderr
    says(found.stderr, "error: ", path, "--config.adapters.width=8")
