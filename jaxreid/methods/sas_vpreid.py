"""SAS-VPReID: CLIP's tower with a memory of two proxies per identity, Mamba over three granularities of time, and a
stream of body shape.

Yang, Zhang, Wang, Gong, "SAS-VPReID" (scale-adaptive, with shape priors), arXiv 2601.05535, in the form of its released
code but where that does not do what it means to (docs/sas_vpreid.md). Its modules are MEVB (the tower, its memory,
colours that change clip by clip), MGTM (Mamba) and PRSD (shape). The losses of the latter two reach no other part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.data.batch import Batch
from jaxreid.dataset_info import DatasetInfo
from jaxreid.errors import UserError
from jaxreid.layers.mamba import SEGMENTS, MambaLayer, MultiGranularityMamba
from jaxreid.layers.shape_stream import MEAN_SHAPE, PlaceClassifiers, ShapeStream
from jaxreid.losses.identity import cross_entropy
from jaxreid.losses.shape_prior import shape_prior
from jaxreid.methods.class_banks import MOVING_VALUES, Bank, BankMemory, MovingBank
from jaxreid.methods.clip_family import ClipFamily, ClipNetwork, family_values, frame_loss
from jaxreid.methods.method import Variables
from jaxreid.methods.released import sas_vpreid
from jaxreid.optimizers import Group, Optimizer
from jaxreid.values import flag, non_negative, under, whole

QUARTERS = max(SEGMENTS.values())
JOINT = ("last", "projected")  # behind their norms and side by side: what the memory and a classifier compare


class SASNetwork(ClipNetwork):
    """The family's network with MGTM ("temporal") and PRSD ("shape").

    Attributes:
      mgtm, prsd: make the modules, None = without.
      places: frames of a training clip, each of which has a classifier of shapes.
    """

    frames: bool = True
    mgtm: Callable[[], nn.Module] | None = MultiGranularityMamba
    prsd: Callable[[], nn.Module] | None = ShapeStream
    places: int = 8

    def setup(self):
        super().setup()
        self.norms = {name: MaskedBatchNorm(use_bias=self.neck_shift) for name in JOINT}
        self.classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=nn.initializers.normal(0.001))
        if self.mgtm:
            self.temporal = self.mgtm()
        if self.prsd:
            self.shape = self.prsd()
            self.shape_classifiers = PlaceClassifiers(self.num_classes, self.places)

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """Everything once, which makes the parameters."""
        found = self.encode(batch, train=False)
        self.logits(found, batch, train=False)
        return found

    def encode(self, batch: Batch, train: bool) -> dict[str, Any]:
        """Clip features by name, "joint" among them; of MGTM "temporal" and "frames" f32[B, T, D]; of PRSD "shape"
        f32[B, 10] and, of frames, "shapes" and "betas" f32[B, T, 10]."""
        frames = self.tower(batch, train, all_tokens=bool(self.mgtm or self.prsd))
        found = self.clips(frames, batch)
        found["joint"] = self.joint(found, batch, train)
        if self.mgtm:
            found["temporal"], found["frames"] = self.temporal(frames.tokens, batch.frame_mask)
        if self.prsd:
            found |= self.shape(frames.tokens, batch.frame_mask, train)
        return found

    def joint(self, found: Mapping[str, Any], batch: Batch, train: bool) -> jax.Array:
        """f32[B, D + E], the features of `JOINT` as their batch norms leave them."""
        normed = [self.norms[name](found[name], batch.valid, use_running_average=not train) for name in JOINT]
        return jnp.concatenate(normed, axis=-1)

    def proxies(self, batch: Batch) -> jax.Array:
        """ "joint" in evaluation mode and without side information, which the memory is made of."""
        frames = self.tower(batch, False, plain=True)
        found = {name: masked_mean(getattr(frames, name), batch.frame_mask) for name in JOINT}
        return self.joint(found, batch, False)

    def logits(self, found: Mapping[str, Any], batch: Batch, train: bool) -> dict[str, jax.Array]:
        """Identity logits f32[B, C] of "joint", "temporal" and "shape"; of "frames" f32[B·T, C], of "shapes"
        f32[B, T, C]."""
        logits = super().logits(found, batch, train) | {"joint": self.classifier(found["joint"])}
        if self.prsd:
            logits["shapes"] = self.shape_classifiers(found["shapes"])
        return logits

    def normed(self, found: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Clip features by name as their batch norms leave them, with running statistics."""
        of_joint = {name: self.norms[name](found[name], batch.valid, use_running_average=True) for name in JOINT}
        return super().normed(found, batch) | of_joint

    def similar(self, found: Mapping[str, Any], bank: jax.Array, batch: Batch, train: bool) -> jax.Array:
        """Dot products of "joint" with the proxies [2C, D + E]."""
        return jnp.matmul(found["joint"], bank.T, precision=jax.lax.Precision.HIGHEST)


VALUES = {
    **family_values("temporal", "shape"),
    **MOVING_VALUES,
    "module_rates": flag,
    "mgtm.enabled": flag,
    **under("mgtm", dict.fromkeys(("state", "expand", "kernel", "mlp_ratio"), whole(1))),
    "mgtm.chunk": whole(0),
    **under("prsd", dict.fromkeys(("enabled", "train"), flag)),
    **under("prsd", dict.fromkeys(("width", "hidden", "depth", "heads", "iterations"), whole(1))),
    **under("weights", dict.fromkeys(("frame_identity", "shape_identity", "prior"), non_negative)),
    "released": flag,
}


class SASVPReID(ClipFamily):
    """See the module's docstring."""

    values = VALUES
    released = sas_vpreid.RELEASED
    compared = "joint"

    @classmethod
    def contradictions(cls, config: Any) -> Iterator[str]:
        yield from super().contradictions(config)
        parts = {"temporal": "mgtm", "shape": "prsd"}
        for key, names in (("triplet.features", config.triplet.features), ("embedding", config.embedding)):
            for feature, part in parts.items():
                if feature in names and not config[part].enabled:
                    yield f"config.{key} has {feature!r}, the feature of what config.{part}.enabled=True adds"
        if config.mgtm.enabled:
            for key in ("batch.seq_len", "evaluation.seq_len"):
                length = config[key.split(".", maxsplit=1)[0]].seq_len
                if length % QUARTERS:
                    yield (
                        f"config.{key}={length}: halves and quarters of a clip are looked at, so that its frames must "
                        f"be a multiple of {QUARTERS}, or set config.mgtm.enabled=False"
                    )
            if config.released and config.evaluation.seq_len % config.batch.seq_len:
                yield (
                    f"config.released=True regroups the {config.evaluation.seq_len} frames of tests as the "
                    f"{config.batch.seq_len} of training: config.evaluation.seq_len must be a multiple of "
                    "config.batch.seq_len"
                )
        if config.prsd.enabled and config.prsd.hidden % config.prsd.heads:
            yield f"config.prsd.hidden={config.prsd.hidden} is not a multiple of config.prsd.heads={config.prsd.heads}"

    def __init__(self, config: Any, info: DatasetInfo) -> None:
        if "camera_index" in config.sie.columns and not len(info.cameras):
            raise UserError(
                f"config.sie.columns={tuple(config.sie.columns)!r}: {info.name} names no camera in training; set "
                "config.sie.columns=()"
            )
        super().__init__(config, info)

    # --- MEVB: the tower, module-dependent learning rates, the memory ------------------------------------------

    def optimizer(self) -> Optimizer:
        """The groups of the config; without `module_rates`, all that trains has one rate, biases too. Mean pose, shape
        and camera never train, and what PRSD keeps as it is does not decay."""
        found, prsd = super().optimizer(), self.config.prsd
        groups = found.groups
        if not self.config.module_rates:
            one = self.config.optimizer.lr
            groups = tuple(dataclasses.replace(group, lr=one if group.lr else 0.0) for group in groups)
        kept = [r"^shape/regressor/mean_"] if prsd.enabled else []
        if prsd.enabled and not prsd.train:
            kept += [r"^shape/(encoder|encoder_out|regressor)/"]
        if prsd.enabled and self.config.released:
            kept += [r"^shape/(project|encoder|encoder_out|regressor)/"]
        return dataclasses.replace(found, groups=(*(Group(pattern, 0.0) for pattern in kept), *groups))

    def make_bank(self) -> Bank:
        return MovingBank(self.config, self.info, self.image.width + self.joint_width, self.of_proxies)

    def of_proxies(self, variables: Variables, memory: BankMemory, batch: Batch) -> dict[str, Any]:
        """What the bank is made of, under the name that it looks for."""
        return {"projected": self.network.apply(variables, batch, method="proxies")}

    # --- MGTM and PRSD -----------------------------------------------------------------------------------------

    def make_network(self) -> SASNetwork:
        config, length = self.config, self.config.batch.seq_len
        mgtm, prsd = dict(config.mgtm.items()), dict(config.prsd.items())
        temporal, shape = mgtm.pop("enabled"), prsd.pop("enabled")
        prsd.pop("train")
        pieces = length if config.released else 0
        mamba = partial(MultiGranularityMamba, partial(MambaLayer, **mgtm, dtype=self.image.dtype), pieces)
        return SASNetwork(
            **self.shared(),
            classified=(*(("temporal",) if temporal else ()), *(("shape",) if shape else ())),
            frames=temporal,
            mgtm=mamba if temporal else None,
            prsd=partial(ShapeStream, **prsd, released=config.released) if shape else None,
            places=length,
        )

    # --- the losses --------------------------------------------------------------------------------------------

    @property
    def told(self) -> tuple[str, ...]:
        """What 0.25·LS is of, beside Tri(f) + Tri(g) + Tri(h) + Tri(b) + L_mem and what frames add."""
        return ("joint", *super().told)

    def more_losses(
        self, found: Mapping[str, Any], logits: Mapping[str, jax.Array], memory: Any, batch: Batch
    ) -> dict[str, tuple[Any, jax.Array]]:
        """LS(h_t)/T; Σ_t LS(s_t)/T, each frame by the classifier of its place; ½·MSE to the mean shape of the shapes of
        frames (released: of the regressor's β, which is a constant, so that this loss teaches nothing)."""
        losses = frame_loss(self.config, logits, batch)
        if "shapes" not in logits:
            return losses
        w, seen = self.config.weights, batch.seen
        y = jnp.repeat(batch.identity, seen.shape[1])
        of_shapes = logits["shapes"].reshape(len(y), -1)
        of_shapes = cross_entropy(of_shapes, y, seen.reshape(-1), self.config.label_smoothing)
        shapes = found["betas"] if self.config.released else found["shapes"]
        return losses | {
            "shape_identity": (w.shape_identity, of_shapes),
            "prior": (w.prior, shape_prior(shapes, MEAN_SHAPE, seen)),
        }


METHOD = SASVPReID
