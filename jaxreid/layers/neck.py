"""Heads that identity losses go through: the neck, batch norm between the feature that distance losses see and the one
that classifiers see; and the classifier by cosines."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxreid.arrays import unit_rows
from jaxreid.backbones.batch_norm import MaskedBatchNorm
from jaxreid.shapes import AnyArray, Array, Bool, Float

NECKS = ("before", "after")  # test features: before or after the batch norm of their neck


class Neck(nn.Module):
    """Batch norm and a classifier without bias, drawn from N(0, 0.001²): the head that identity losses go through.

    Attributes:
      num_classes: C, training identities.
      use_bias: whether the batch norm has a trained shift; without, it is 0.
    """

    num_classes: int
    use_bias: bool = False

    def setup(self):
        self.norm = MaskedBatchNorm(use_bias=self.use_bias)
        init = nn.initializers.normal(0.001)
        self.classifier = nn.Dense(self.num_classes, use_bias=False, kernel_init=init)

    def __call__(
        self, features: Float[Array, "rows dim"], mask: Bool[AnyArray, " rows"], train: bool
    ) -> Float[Array, "rows {self.num_classes}"]:
        """Features, and which of them count → logits."""
        return self.classifier(self.norm(features, jnp.asarray(mask), use_running_average=not train))


class Necks(nn.Module):
    """A neck for each of several features, by name.

    Attributes:
      num_classes, use_bias: of each.
      names: the features that have one.
    """

    num_classes: int
    names: tuple[str, ...]
    use_bias: bool = False

    def setup(self):
        self.necks = {name: Neck(self.num_classes, self.use_bias) for name in self.names}

    def __call__(
        self, features: Mapping[str, Float[Array, "rows dim"]], mask: Bool[AnyArray, " rows"], train: bool
    ) -> dict[str, Float[Array, "rows {self.num_classes}"]]:
        """Features by name → their logits; those without a neck are left out."""
        return {name: self.necks[name](features[name], mask, train) for name in self.names}

    def normed(
        self, features: Mapping[str, Float[Array, "rows dim"]], mask: Bool[AnyArray, " rows"]
    ) -> dict[str, Float[Array, "rows dim"]]:
        """Features that have a neck as its batch norm leaves them, with running statistics."""
        mask, named = jnp.asarray(mask), [name for name in self.names if name in features]
        return {name: self.necks[name].norm(features[name], mask, use_running_average=True) for name in named}

    def neck(self, name: str) -> Neck:
        """The neck of a feature, for what shares it or its classifier."""
        return self.necks[name]


class CosineClassifier(nn.Module):
    """Logits s·cos(feature, class vector), in float32; class vectors are drawn from N(0, 0.01²).

    A feature of zeros has cosine 0 with every class, and no gradient.

    Attributes:
      num_classes: C, training identities.
      scale: s.
    """

    num_classes: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, features: Float[Array, "rows dim"]) -> Float[Array, "rows {self.num_classes}"]:
        shape = features.shape[-1], self.num_classes
        vectors = self.param("kernel", nn.initializers.normal(0.01), shape).T
        cosine = jnp.matmul(unit_rows(features), unit_rows(vectors).T, precision=jax.lax.Precision.HIGHEST)
        return self.scale * cosine
