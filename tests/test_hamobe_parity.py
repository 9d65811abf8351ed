"""HAMoBE: a released head is read into a workdir, and computes what its restatement in PyTorch does."""

import json
from types import SimpleNamespace

import family
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released_files
from messages import refuses, says
from test_hamobe import COUNT, FRAMES, TOKENS, TOWER, make_config
from test_hamobe import small_tower as small_tower

from jaxreid.run.model import open_model
from jaxreid.training.importing import import_released
from jaxreid.training.restore import restore_judged
from jaxreid.training.steps import variables_of

torch = pytest.importorskip("torch")  # what the restatement is written in
from references import hamobe_forward as reference  # noqa: E402

pytestmark = pytest.mark.parity

CHANGES = {"experts.dropout": 0.0, "experts.normalize": False, "pair.probability": 1.0}


@pytest.fixture(scope="module")
def released(tmp_path_factory, data_dir, tiny, small_tower):
    """A small head and a CLIP as a workdir: its model and variables, the head's tensors, and what import said."""
    folder = tmp_path_factory.mktemp("hamobe")
    head = released_files.hamobe(TOWER.width, TOKENS, FRAMES, COUNT, 2)
    paths = [folder / name for name in ("head.safetensors", "clip.safetensors")]
    tensors = released_files.random_file(paths[0], head)
    tower = released_files.random_file(paths[1], released_files.openai_clip(TOWER.width, TOWER.depth, 8, TOKENS - 1), 1)
    lines = import_released(make_config(**CHANGES), paths, folder / "run", data_dir)
    model = open_model(folder / "run")
    state, frozen, *_ = restore_judged(model)
    return SimpleNamespace(
        folder=folder, tensors=tensors, tower=tower, paths=paths, lines=lines, model=model,
        variables=jax.device_get(variables_of(state, frozen)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def computed(released):
    """What ours gives, compiled once: taps of the tower, the network alone and in pairs, and a training step."""
    method, batch = released.model.method, family.make_batch(1)
    partner = jnp.array([1, 0, 4, 5, 2, 3, 7, 6])
    step = jax.value_and_grad(family.loss_of(method.stages()[0]), has_aux=True)

    def everything(variables):
        def taps(net):
            frames = batch.frames.reshape(-1, *batch.frames.shape[2:])
            return [tuple(x.reshape(*batch.frames.shape[:2], *x.shape[1:]) for x in tap)
                    for tap in net.image_tower(frames, taps=(-2, -1))["taps"]]  # fmt: skip

        net = method.network
        found = {"taps": net.apply(variables, method=taps)}
        found |= {"alone": net.apply(variables, batch, False), "others": net.apply(variables, batch, False, partner)}
        met = method.partners(batch, jax.random.split(family.context().rng)[0])
        return found | {"met": met, "step": step(variables["params"], variables["batch_stats"], {}, batch)}

    found = jax.device_get(jax.jit(everything)(released.variables))
    return SimpleNamespace(batch=batch, partner=np.asarray(partner), **found)


def taps_of(computed, rows=slice(None)):
    return [tuple(torch.as_tensor(np.array(x[rows])) for x in tap) for tap in computed.taps]


def test_a_released_head_computes_what_the_released_code_computes(released, computed):
    """Clips alone and beside others: shares, features of frames, weights and embeddings."""
    net = reference.HAMoBE(released.tensors, TOWER.grid)
    with torch.no_grad():
        (alone,) = net(taps_of(computed))
        others, _ = net(taps_of(computed), taps_of(computed, computed.partner))
    for ours, theirs in ((computed.alone, alone), (computed.others, others)):
        close(ours["shares"], theirs["shares"])
        close(ours["frames"]["canonical"], theirs["c"])
        close(ours["frames"]["appearance"], theirs["a"])
        close(ours["frames"]["gait"], theirs["gait"])
        close(ours["weights"], theirs["weights"])
        close(ours["feature"], theirs["feature"])
    assert np.abs(computed.others["feature"] - computed.alone["feature"]).max() > 1e-3


def test_a_training_step_is_that_of_the_restated_code(released, computed):
    """Clips that meet others: every loss, and gradients from the embedding down to the tables of the decoder."""
    net, label = reference.HAMoBE(released.tensors, TOWER.grid, train=True), torch.as_tensor(
        np.asarray(computed.batch.identity, np.int64)
    )  # fmt: skip
    for name, x in net.t.items():
        x.requires_grad_("running" not in name)
    partner = np.array(computed.met)
    assert (partner != np.arange(len(partner))).all()
    found, other = net(taps_of(computed), taps_of(computed, partner))
    np.testing.assert_allclose(other["feature"].detach(), found["feature"].detach()[partner], atol=1e-4)
    params = released.variables["params"]
    vectors = torch.as_tensor(np.array(params["classifier"]["kernel"].T))
    same = label == label[partner]
    terms = {
        "identity": (1.0, reference.identity(found["feature"], vectors, label)),
        "intra_canonical": (1.0, reference.intra(found["c"])),
        "inter": (1.0, reference.inter(found["c"].mean(1), label)),
        "intra_appearance": (1.0, reference.intra(found["a"])),
        "gait": (1.0, reference.gait(found["gait"], label)),
        "pair": (0.5, reference.pair(found["feature"], found["feature"][partner], same.float(), 5.0)),
    }
    (total, (metrics, *_)), slopes = computed.step
    for name, (_, value) in terms.items():
        assert float(metrics[f"loss_{name}"]) == pytest.approx(value.item(), rel=1e-3), name
    expected = sum(weight * value for weight, value in terms.values())
    assert float(total) == pytest.approx(expected.item(), rel=1e-3)
    expected.backward()
    pairs = {
        "fc.weight": slopes["fc"]["kernel"].T,
        "bn.weight": slopes["norm"]["scale"],
        "gating_second.fc2.0.weight": slopes["gate2_frames_0"]["kernel"].T,
        "gating_second.attn.to_k.weight": slopes["gate2"]["key"]["kernel"].T,
        "gating_second.pos_embed.emb.weight": slopes["gate2"]["places"],
        "moe_pose.cls_token": slopes["gait"]["query"],
        "moe_pose.pose_agg.norm3.weight": slopes["gait"]["norm_tokens"]["scale"],
        "moe_canonical.patch_agg.0.weight": slopes["canonical"]["pool"]["first"]["kernel"].T,
        "moe_first.gating.attn.to_v.weight": slopes["gate1"]["value"]["kernel"].T,
        "moe_first.experts.1.2.weight": slopes["low_experts"]["kernel"][1].T,
        "decoder.cross_attention.0.w1": slopes["decoder"]["layer_0"]["previous"],
        "decoder.cross_attention.1.w2": slopes["decoder"]["layer_1"]["next"],
        "decoder.temporal_conv.1.weight": slopes["decoder"]["layer_1"]["conv_kernel"].T[:, None],
        "decoder.temporal_pos_embed.0": slopes["decoder"]["layer_0"]["position"],
    }
    for name, ours in pairs.items():
        theirs = net.t[name].grad.numpy()
        np.testing.assert_allclose(ours, theirs, atol=5e-3 * np.abs(theirs).max(), err_msg=name)


def close(ours, theirs):
    theirs = theirs.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(np.abs(theirs).max(), 1.0))


def test_every_tensor_is_used_or_listed(released):
    record = json.loads((released.folder / "run" / "imported.json").read_text())
    assert record["used"] + len(record["unused"]) == len(released.tensors) + len(released.tower)
    assert all(not name.startswith(("visual.", *released.tensors)) for name in record["unused"])
    assert set(record["drawn"]) == {"classifier/kernel", "pair_threshold"}
    assert record["identities"] is None and not any("None" in line for line in released.lines)
    says(released.lines, "nothing was trained here", "head.safetensors")


def test_files_that_are_not_as_released_are_refused(released, tmp_path, data_dir):
    head, tower = released.paths
    for paths, parts, changes in (
        ([head], ("missing", "visual.conv1.weight"), {}),
        ([tower], ("no checkpoint of HAMoBE",), {}),
        ([head, tower], ("--config.batch.seq_len=3", "--config.evaluation.seq_len=3"),
         {"batch.seq_len": 4, "evaluation.seq_len": 4}),
        ([head, tower], ("--config.experts.count=3",), {"experts.count": 8}),
    ):  # fmt: skip
        with refuses(ValueError, *parts):
            import_released(make_config(**CHANGES | changes), paths, tmp_path / "run", data_dir)
    assert not (tmp_path / "run").exists()
