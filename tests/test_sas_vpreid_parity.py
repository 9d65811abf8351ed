"""SAS-VPReID: released tensors are read into a workdir, and its modules compute what a restatement in PyTorch does."""

import json
from types import SimpleNamespace

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_files
from messages import refuses, says

from jaxreid.layers.mamba import MambaLayer
from jaxreid.layers.shape_stream import ShapeStream
from jaxreid.run.model import open_model
from jaxreid.training.importing import import_released
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

torch = pytest.importorskip("torch")  # what the restatement is written in
from references.sas_vpreid_forward import Forward  # noqa: E402

pytestmark = pytest.mark.parity

SIZES = {"mgtm.state": 4, "mgtm.expand": 2, "mgtm.mlp_ratio": 2, "prsd.width": 24, "prsd.hidden": 16, "prsd.depth": 1}
CHANGES = {
    **SIZES, "prsd.heads": 2, "mgtm.chunk": 3, "released": True, "dataset.config": "tiny", "extraction_batch_size": 8,
    "frames.height": 24, "frames.width": 24,
}  # fmt: skip
TRAINED, TESTED = 4, 8  # frames of clips


@pytest.fixture(scope="module")
def released(tmp_path_factory, data_dir, tiny):
    """A small release as a workdir: its tensors, model and variables, and what import said."""
    folder = tmp_path_factory.mktemp("sas_vpreid")
    tower = family.IMAGE
    shapes = released_files.sas_vpreid(
        tower.width, tower.projection, 24, 16, depth=1, frames=TRAINED, state=4, mlp_ratio=2
    )
    clip = released_files.openai_clip(tower.width, tower.depth, tower.patch, tower.patches, tower.projection)
    shapes |= {k.replace("visual", "image_encoder"): v for k, v in clip.items() if k.startswith("visual")}
    path = folder / "released.safetensors"
    tensors = released_files.random_file(path, shapes)
    with pytest.MonkeyPatch.context() as patch:
        family.small_towers(patch)
        config = family.make_config("sas_vpreid", **CHANGES)
        lines = import_released(config, [path], folder / "run", data_dir)
        model = open_model(folder / "run")
        state, frozen, *_ = restore_judged(model)
        yield SimpleNamespace(
            folder=folder, path=path, tensors=tensors, lines=lines, model=model,
            variables=jax.device_get(variables_of(state, frozen)),
        )  # fmt: skip


@pytest.fixture(scope="module")
def computed(released):
    """What ours gives, compiled once: the embedding as released, and modules as they are meant, with gradients."""
    batch = jax.tree.map(lambda x: x[:4], family.make_batch())
    frames = jax.random.normal(jax.random.key(1), (4, TESTED, 24, 24, 3))
    batch = batch.replace(frames=frames, frame_mask=jnp.ones((4, TESTED), bool))
    method, params = released.model.method, released.variables["params"]
    mamba = MambaLayer(state=4, mlp_ratio=2, chunk=3)
    prsd = ShapeStream(24, 16, depth=1, heads=2)

    def modules(params, tokens):
        layer = mamba.apply({"params": params["temporal"]["whole"]}, tokens, batch.frame_mask)
        shape = prsd.apply({"params": params["shape"]}, tokens, batch.frame_mask, False)
        return (layer**3).sum() + (shape["shape"] ** 2).sum(), (layer, shape)

    def everything(variables):
        found = method.network.apply(
            variables, batch, False, method=lambda net, b, train: net.tower(b, train, all_tokens=True)
        )
        ours = {name: variables["params"][name] for name in ("temporal", "shape")}
        step = jax.value_and_grad(modules, has_aux=True)(ours, found.tokens)
        return {
            "f": found.last.mean(1), "g": found.projected.mean(1), "tokens": found.tokens, "step": step,
            "embedded": method.embed(variables, None, batch)["feature"],
        }  # fmt: skip

    assert set(params) >= {"temporal", "shape"}
    return SimpleNamespace(**jax.device_get(jax.jit(everything)(released.variables)))


def close(ours, theirs, least=1.0):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(np.abs(theirs).max(), least))


def test_a_released_file_embeds_as_the_released_code(released, computed):
    """With the frames of training, regrouped as in training, and recurrent over a batch of one clip."""
    net = Forward(released.tensors, heads=2)
    parts = [torch.as_tensor(np.array(getattr(computed, name))) for name in ("f", "g", "tokens")]
    with torch.no_grad():
        close(computed.embedded, net.embed(*parts, pieces=TRAINED))
    assert computed.embedded.shape == (4, 16 + 8 + 16 + 10)


def test_modules_and_their_gradients_are_those_of_the_restatement(released, computed):
    """As they are meant: regrouped by the frames that there are, recurrent over time; scanned in chunks that do not
    divide the sequence."""
    net = Forward(released.tensors, heads=2)
    for name, x in net.t.items():
        x.requires_grad_(x.is_floating_point() and "running" not in name)
    tokens = torch.as_tensor(np.array(computed.tokens))
    layer = net.layer("TMD_mamba", tokens.reshape(4, -1, tokens.shape[-1]), TESTED).reshape(tokens.shape)
    found = dict(zip(("shape", "shapes", "betas"), net.shape(tokens, released=False), strict=True))
    (value, (ours_layer, ours)), slopes = computed.step
    close(ours_layer, layer)
    for name, theirs in found.items():
        close(ours[name], theirs)
    expected = (layer**3).sum() + (found["shape"] ** 2).sum()
    assert float(value) == pytest.approx(expected.item(), rel=1e-3)
    expected.backward()
    layer, stream = slopes["temporal"]["whole"], slopes["shape"]
    whole = layer["mamba"]
    pairs = {
        "TMD_mamba.mamba.A_log": whole["log_a"][0],
        "TMD_mamba.mamba.A_b_log": whole["log_a"][1],
        "TMD_mamba.mamba.A_s_log": whole["log_a"][2],
        "TMD_mamba.mamba.D_s": whole["skip"][2],
        "TMD_mamba.mamba.conv1d_s.weight": whole["conv_kernel"][2].T[:, None],
        "TMD_mamba.mamba.x_proj_b.weight": whole["mixing"][1].T,
        "TMD_mamba.mamba.dt_proj.weight": whole["step_kernel"][0].T,
        "TMD_mamba.mamba.dt_proj_s.bias": whole["step_bias"][2],
        "TMD_mamba.mamba.in_proj.weight": whole["in"]["kernel"].T,
        "TMD_mamba.mamba.out_proj.weight": whole["out"]["kernel"].T,
        "TMD_mamba.norm1.weight": layer["norm_1"]["scale"],
        "TMD_mamba.mlp.fc1.weight": layer["up"]["kernel"].T,
        "TMD_mamba.ln_2.bias": layer["norm"]["bias"],
        "pro_tsm.weight": stream["project"]["kernel"].T,
        "tsm.encoder.gru.weight_ih_l0": stream["encoder"]["layer_0_input_kernel"].T,
        "tsm.encoder.gru.bias_hh_l1": stream["encoder"]["layer_1_state_bias"],
        "tsm.regressor.decpose.weight": stream["regressor"]["pose"]["kernel"].T,
        "shape_agg.gru.weight_hh_l0": stream["aggregation"]["recurrent"]["layer_0_state_kernel"].T,
        "shape_agg.attention.layers.0.ffn.0.weight": stream["aggregation"]["block_00"]["up"]["kernel"].T,
    }
    for name, ours in pairs.items():
        theirs = net.t[name].grad.numpy()
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max(), err_msg=name)


def test_every_tensor_is_used_or_listed(released):
    record = json.loads((released.folder / "run" / "imported.json").read_text())
    assert record["used"] + len(record["unused"]) == len(released.tensors)
    counts = {name for name in released.tensors if name.endswith("num_batches_tracked")}
    assert set(record["unused"]) == counts | {f"classifier{end}.weight" for end in ("2", "_proj", "_proj_temp2")}
    assert not record["drawn"] and record["identities"] == released_files.IDENTITIES and record["cameras"] == 6
    says(released.lines, "nothing was trained here", "released.safetensors")
    # Places follow each other, and each has its own.
    params = released.variables["params"]["shape_classifiers"]
    for place in range(TRAINED):
        weight = released.tensors[f"shape_classifiers.{place}.classifier.weight"]
        np.testing.assert_array_equal(params["kernel"][place], weight.T)


def test_files_that_are_not_as_released_are_refused(released, tmp_path, data_dir):
    for changes, part in (
        ({"released": False}, "--config.released=True"),
        ({"batch.seq_len": 8}, f"--config.batch.seq_len={TRAINED}"),
        ({"mgtm.state": 16}, "--config.mgtm.state=4"),
        ({"prsd.depth": 4}, "--config.prsd.depth=1"),
    ):
        with refuses(ValueError, part):
            import_released(
                family.make_config("sas_vpreid", **CHANGES | changes), [released.path], tmp_path / "run", data_dir
            )
    config = family.make_config("tf_clip", **{"dataset.config": "tiny"})
    with refuses(ValueError, "SAS-VPReID's released code", "tf_clip"):
        import_released(config, [released.path], tmp_path / "run", data_dir)
