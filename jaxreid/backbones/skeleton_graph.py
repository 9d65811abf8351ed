"""A transformer over the joints of single skeletons, of any number of joints and any tree of bones.

Joints are metres from the root. Each becomes a token, to which what the Laplacian of the tree says of its place is
added; post-norm blocks attend among the joints of one frame, never over time.

Sources: Rao and Miao, "TranSG", CVPR 2023, in the form of CSIP-ReID's released code (order of operations).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.arrays import masked_mean
from jaxreid.backbones.torch_linear import torch_dense
from jaxreid.backbones.transformer import LayerNorm
from jaxreid.errors import UserError

Array = jax.Array
Tree = tuple[tuple[int, int], ...]  # pairs of joints that a bone connects

# By the number of joints: Human3.6M's order, Kinect's first and second skeleton in the order of its files.
_LEGS_AND_ARMS = (
    (4, 5), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (12, 13), (13, 14), (14, 15), (16, 17), (17, 18), (18, 19),
)  # fmt: skip
TREES: dict[int, Tree] = {
    17: ((0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (9, 10), (8, 11), (11, 12), (12, 13),
         (8, 14), (14, 15), (15, 16)),
    20: ((0, 1), (1, 2), (2, 3), (2, 4), (2, 8), (0, 12), (0, 16), *_LEGS_AND_ARMS),
    25: ((0, 1), (1, 20), (20, 2), (2, 3), (20, 4), (20, 8), (0, 12), (0, 16), *_LEGS_AND_ARMS,
         (7, 21), (6, 22), (11, 23), (10, 24)),
}  # fmt: skip

SAME = 1e-6  # eigenvalues that differ by less are one
LARGEST_LOGIT = 5.0


# --- Where a joint is in the tree -------------------------------------------------------------------------------------


def tree_of(joints: int, edges: Sequence[Sequence[int]] = ()) -> Tree:
    """The edges of a skeleton's tree; without any, those that are known of this number of joints.

    Raises:
      UserError: none are known, or the edges are no tree of all joints.
    """
    if not edges and joints not in TREES:
        raise UserError(f"no tree of {joints} joints is known ({', '.join(map(str, TREES))} are): name its edges")
    found = tuple((int(a), int(b)) for a, b in edges) or TREES[joints]
    reached = {0}
    for _ in found:
        reached |= {b for edge in found for a, b in (edge, edge[::-1]) if a in reached}
    if len(found) != joints - 1 or reached != set(range(joints)):
        raise UserError(f"{len(found)} edges {found} are no tree of the joints 0 … {joints - 1}")
    return found


def laplacian(tree: Tree) -> np.ndarray:
    """I − D^(−1/2) A D^(−1/2) of the tree's adjacency A and degrees D, f64[J, J]."""
    adjacency = np.zeros((len(tree) + 1,) * 2)
    for a, b in tree:
        adjacency[a, b] = adjacency[b, a] = 1
    scale = adjacency.sum(0) ** -0.5
    return np.eye(len(adjacency)) - scale[:, None] * adjacency * scale


def tree_code(tree: Tree, count: int) -> np.ndarray:
    """f32[J, count]: orthonormal eigenvectors of the Laplacian for its smallest eigenvalues but 0.

    A solver gives some basis of the space of an eigenvalue that occurs more than once, and some sign. Here it is the
    one that Gram–Schmidt makes of the joints projected into that space, in their order: the same from every solver.
    """
    values, vectors = np.linalg.eigh(laplacian(tree))
    spaces = np.split(vectors, np.flatnonzero(np.diff(values) > SAME) + 1, axis=1)
    columns = [column for space in spaces[1:] for column in _basis(space @ space.T)]  # a tree has one eigenvalue 0
    return np.stack(columns[:count], axis=1).astype(np.float32)


def _basis(rows: np.ndarray) -> list[np.ndarray]:
    """Gram–Schmidt: an orthonormal basis of what the rows span."""
    found: list[np.ndarray] = []
    for row in rows:
        left = row - sum((column @ row) * column for column in found)
        if np.linalg.norm(left) > SAME:
            found.append(left / np.linalg.norm(left))
    return found


# --- The network ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkeletonConfig:
    """What a skeleton graph transformer is made of.

    Attributes:
      tree: of J joints, J − 1 pairs.
      hidden: width of the MLP of a block.
      eigenvectors: of the Laplacian, at most J − 1.
      projection: width of what comes out, in another space; None = tokens as the last block leaves them.
      dtype: of the matrix products; parameters, norms and softmax are float32.
    """

    tree: Tree = TREES[17]
    width: int = 512
    depth: int = 10
    heads: int = 8
    hidden: int = 1024
    dropout: float = 0.3
    eigenvectors: int = 10
    projection: int | None = 512
    eps: float = 1e-5
    dtype: Any = jnp.float32
    activation: ClassVar[str] = "relu"

    @property
    def joints(self) -> int:
        return len(self.tree) + 1


class GraphBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + MLP(x)), where no logit of the attention is larger than 5."""

    config: SkeletonConfig

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Tokens [N, J, D]."""
        c = self.config

        def dense(y: Array, outputs: int, name: str) -> Array:
            return torch_dense(y.shape[-1], outputs, name, c.dtype)(y)

        def drop(y: Array) -> Array:
            return nn.Dropout(c.dropout, deterministic=not train)(y)

        q, k, v = (dense(x, c.width, name).reshape(*x.shape[:2], c.heads, -1) for name in ("query", "key", "value"))
        logits = jnp.einsum("nqhd,nkhd->nhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)).astype(v.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weights, v).reshape(x.shape)
        x = LayerNorm(c.eps, name="norm_1")(x + drop(dense(mixed, c.width, "out"))).astype(c.dtype)
        mixed = dense(drop(nn.relu(dense(x, c.hidden, "up"))), c.width, "down")
        return LayerNorm(c.eps, name="norm_2")(x + drop(mixed)).astype(c.dtype)


class SkeletonGraph(nn.Module):
    """Joints of frames → a token for each joint.

    The places of joints in the tree ("tree_code") are constants, kept among the batch statistics: in every checkpoint,
    and trained by nobody.
    """

    config: SkeletonConfig

    @nn.compact
    def __call__(self, joints: Array, train: bool = False, signs: Array | None = None) -> Array:
        """Joints f32[..., J, 3] → tokens f32[..., J, P].

        Args:
          train: needs the random key "dropout" where there is dropout.
          signs: f32[eigenvectors], ±1 for each column of "tree_code"; None = all 1.

        Raises:
          UserError: another number of joints.
        """
        c = self.config
        if joints.shape[-2:] != (c.joints, 3):
            raise UserError(f"skeletons of {list(joints.shape[-2:])} joints and values, this network takes {c.joints}")
        x = joints.reshape(-1, c.joints, 3)
        x = x - x[:, :1]
        x = nn.relu(torch_dense(3, c.width, "embed_in", c.dtype)(x))
        x = torch_dense(c.width, c.width, "embed_out", c.dtype)(x)
        made = self.variable("batch_stats", "tree_code", lambda: jnp.asarray(tree_code(c.tree, c.eigenvectors)))
        code = made.value if signs is None else made.value * signs
        x = x + torch_dense(c.eigenvectors, c.width, "embed_code", c.dtype)(code)
        for number in range(c.depth):
            x = GraphBlock(c, name=f"block_{number:02d}")(x, train)
        if c.projection is not None:
            init = nn.initializers.normal(c.width**-0.5)
            x = nn.Dense(c.projection, use_bias=False, dtype=c.dtype, kernel_init=init, name="projection")(x)
        return x.reshape(*joints.shape[:-1], -1).astype(jnp.float32)


def clip_mean(tokens: Array, seen: Array) -> Array:
    """Tokens f32[B, T, J, P] → f32[B, P], the mean over the joints of frames that count, bool[B, T]."""
    return masked_mean(tokens.mean(axis=2), seen)
