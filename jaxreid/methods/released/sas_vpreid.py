"""SAS-VPReID's released files: TF-CLIP's tower and necks with one classifier over both, three Mamba layers in place of
TMD, and the shape stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxreid.backbones.layouts import BATCHED_TENSOR, LINEAR, NORM, PROJECTION, STACKED_ATTENTION, TENSOR, Kind
from jaxreid.layers.mamba import ORDERS
from jaxreid.methods.released import Released, Row, Shapes, Sizes, clip, row

LAYERS = {"whole": "TMD_mamba", "halves": "Her_t_mamba1", "quarters": "Her_t_mamba2"}
AROUND: dict[str, tuple[str, Kind]] = {
    "norm1": ("norm_1", NORM),
    "norm2": ("norm_2", NORM),
    "ln_2": ("norm", NORM),
    "mlp.fc1": ("up", LINEAR),
    "mlp.fc2": ("down", LINEAR),
    "mamba.in_proj": ("mamba/in", PROJECTION),
    "mamba.out_proj": ("mamba/out", PROJECTION),
}
# What each of the three scans has of its own, which lies on a first axis here: name, with the scan's suffix for {}.
OF_SCANS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "conv1d{}.weight": ("conv_kernel", lambda x: np.squeeze(x, 1).T),
    "conv1d{}.bias": ("conv_bias", lambda x: x),
    "x_proj{}.weight": ("mixing", lambda x: x.T),
    "dt_proj{}.weight": ("step_kernel", lambda x: x.T),
    "dt_proj{}.bias": ("step_bias", lambda x: x),
    "A{}_log": ("log_a", lambda x: x),
    "D{}": ("skip", lambda x: x),
}
SCANS = ("", "_b", "_s")  # forward, backward, regrouped
SHAPE: dict[str, tuple[str, Kind]] = {
    "pro_tsm": ("project", PROJECTION),
    "tsm.encoder.linear": ("encoder_out", LINEAR),
    "tsm.regressor.init_pose": ("regressor/mean_pose", BATCHED_TENSOR),
    "tsm.regressor.init_shape": ("regressor/mean_shape", BATCHED_TENSOR),
    "tsm.regressor.init_cam": ("regressor/mean_camera", BATCHED_TENSOR),
    "tsm.regressor.fc1": ("regressor/layer_1", LINEAR),
    "tsm.regressor.fc2": ("regressor/layer_2", LINEAR),
    "tsm.regressor.decpose": ("regressor/pose", LINEAR),
    "tsm.regressor.decshape": ("regressor/shape", LINEAR),
    "tsm.regressor.deccam": ("regressor/camera", LINEAR),
    "shape_agg.layer1": ("aggregation/of_frames", LINEAR),
    "shape_agg.fc": ("aggregation/of_clip", LINEAR),
}
ASA_LAYER: tuple[tuple[str, str | tuple[str, ...], Kind], ...] = (
    (
        "self_attn.in_proj",
        ("attention/query", "attention/key", "attention/value"),
        STACKED_ATTENTION,
    ),
    ("self_attn.out_proj", "attention/out", LINEAR),
    ("ffn.0", "up", LINEAR),
    ("ffn.3", "down", LINEAR),
    ("norm1", "norm_1", NORM),
    ("norm2", "norm_2", NORM),
)


def _together(keys: tuple[str, ...], path: str, read: Callable[[np.ndarray], np.ndarray]) -> Row:
    """Tensors of one sort on a first axis."""
    return Row(keys, (path,), lambda *tensors: [np.stack([read(x) for x in tensors])])


def _mamba() -> list[Row]:
    found = []
    for path, key in LAYERS.items():
        for name, (leaf, kind) in AROUND.items():
            found += row(f"{key}.{name}", f"temporal/{path}/{leaf}", kind)
        for name, (leaf, read) in OF_SCANS.items():
            keys = tuple(f"{key}.mamba.{name.format(scan)}" for scan in SCANS[:ORDERS])
            found.append(_together(keys, f"temporal/{path}/mamba/{leaf}", read))
    return [
        *found,
        *row("alpha", "temporal/fusion", TENSOR),
        *row("norm3_mamba", "temporal/norm_frames", NORM),
        *row("norm4_mamba", "temporal/norm_clip", NORM),
    ]


def _gru(key: str, path: str) -> list[Row]:
    """Both have the gates in the same order."""
    found = []
    for layer in range(2):
        for name, leaf in (("ih", "input"), ("hh", "state")):
            at = f"{path}/layer_{layer}_{leaf}"
            found.append(Row((f"{key}.weight_{name}_l{layer}",), (f"{at}_kernel",), lambda x: [x.T]))
            found += row(f"{key}.bias_{name}_l{layer}", f"{at}_bias", TENSOR)
    return found


def _shape(depth: int, places: int) -> list[Row]:
    found = [each for key, (path, kind) in SHAPE.items() for each in row(key, f"shape/{path}", kind)]
    found += _gru("tsm.encoder.gru", "shape/encoder") + _gru("shape_agg.gru", "shape/aggregation/recurrent")
    for layer in range(depth):
        for key, paths, kind in ASA_LAYER:
            paths = (paths,) if isinstance(paths, str) else paths
            below = tuple(f"shape/aggregation/block_{layer:02d}/{path}" for path in paths)
            found += row(f"shape_agg.attention.layers.{layer}.{key}", below, kind)
    for leaf, name, read in (("kernel", "weight", np.transpose), ("bias", "bias", np.asarray)):
        keys = tuple(f"shape_classifiers.{place}.classifier.{name}" for place in range(places))
        found.append(_together(keys, f"shape_classifiers/{leaf}", read))
    return found


def _rows(method: Any) -> list[Row]:
    """Which of the four necks of the temporal branch is whose is TF-CLIP's, whose names they have."""
    config = method.config
    return [
        *clip.image_tower(method.image),
        *clip.batch_norm("bottleneck", "norms_last"),
        *clip.batch_norm("bottleneck_proj", "norms_projected"),
        *row("classifier", "classifier", PROJECTION),
        *clip.side_table(config.sie.columns),
        *_mamba(),
        *clip.neck("bottleneck_proj_temp2", "classifier_proj_temp", "temporal"),
        *clip.batch_norm("bottleneck_proj_temp", "frame_norm"),
        *_shape(config.prsd.depth, config.batch.seq_len),
        *clip.neck("bottleneck_proj_tsm", "classifier_proj_tsm", "shape"),
    ]


def _sizes(shapes: Shapes, config: Any) -> Sizes:
    return Sizes(clip.length(shapes, "classifier.weight"), clip.cameras(config.sie.columns, shapes))


def _settings(shapes: Shapes, config: Any) -> dict[str, Any]:
    mamba = "TMD_mamba.mamba"
    width = clip.length(shapes, f"{mamba}.out_proj.weight")
    classifiers = sum(name.startswith("shape_classifiers.") and name.endswith(".weight") for name in shapes)
    return {
        **clip.tower_settings(shapes, config),
        **clip.side_settings(shapes, config),
        "released": True,
        "batch.seq_len": classifiers,
        "mgtm.enabled": True,
        "mgtm.state": clip.length(shapes, f"{mamba}.A_log", 1),
        "mgtm.expand": clip.length(shapes, f"{mamba}.D") // max(width, 1),
        "mgtm.kernel": clip.length(shapes, f"{mamba}.conv1d.weight", 2),
        "mgtm.mlp_ratio": clip.length(shapes, "TMD_mamba.mlp.fc1.weight") // max(width, 1),
        "prsd.enabled": True,
        "prsd.width": clip.length(shapes, "pro_tsm.weight"),
        "prsd.hidden": clip.length(shapes, "tsm.encoder.gru.weight_hh_l0", 1),
        "prsd.depth": sum(
            name.startswith("shape_agg.attention.layers.") and name.endswith(".norm1.weight") for name in shapes
        ),
    }


RELEASED = Released(
    name="SAS-VPReID's released code",
    marks=("TMD_mamba.mamba.A_log", "tsm.regressor.init_shape", "shape_agg.layer1.weight"),
    sizes=_sizes,
    settings=_settings,
    rows=_rows,
    unused={
        **clip.COUNTS,
        r"classifier2\.weight|classifier_proj\.weight": "classifiers of single features, for which one of both stands",
        r"classifier_proj_temp2\.weight": "a classifier that TF-CLIP's code, whose name it has, never calls",
    },
)
