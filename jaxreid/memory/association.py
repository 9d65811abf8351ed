"""Association of prototypes without labels: look-alikes, then positives within and across modalities.

All functions are pure, work on fixed-capacity arrays (−1 = empty) and walk over rows in blocks: no K × K matrix is
ever built, except by `softmax_code`, whose codes are K wide. Similarities are fp32 at the highest precision,
because rounding breaks ties, mutual tests and thresholds.

docs/hitpro.md, sections 3.3 (look-alikes) and 3.4 (mining).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxreid.arrays import masked_mean, unit_rows
from jaxreid.errors import UserError
from jaxreid.memory.prototypes import PrototypeMemory
from jaxreid.shapes import Array, Bool, Float, Int, Scalar
from jaxreid.values import check, defaulted, flag, fraction, non_negative, number, one_of, positive, whole

# Finite, so that a reduction over nothing but masked entries gives no NaN.
MASKED = -1e9
# When all row bests tie, the threshold is their mean, which rounding may put above each of them.
TIE_TOLERANCE = 1e-6
SOFTMAX_CODE_SCALE = 20.0

Threshold = Literal["dynamic", "fixed", "none"]
Weights = Literal["soft", "uniform"]
Space1 = Literal["camera_centred", "raw"]
Space2 = Literal["camera_centred", "centred", "aggregated", "raw", "softmax_code"]


@dataclasses.dataclass(frozen=True)
class AssociationConfig:
    """Switches of the association; the defaults are the method's, the others its ablations.

    Attributes:
      candidates_per_camera: R, how many prototypes of a camera may become positives of another.
      within_positives, cross_positives: P of the two stages; equal to the widths of the memory's lists.
      delta: δ, how far below the row's best a positive may lie.
      weight_temperature: T_w of the soft weights.
      threshold: "dynamic" (mean + κ·std of the row bests, at most their maximum), "fixed" (`fixed_threshold`) or
        "none" (the mutual test alone decides, δ is not used).
      mutual: a positive must have the row among its own best of the row's camera.
      weights: "soft" (softmax of the similarities) or "uniform".
      aggregation: share of the within-modality positives in the features of stage 2; 0 switches it off.
      stage1_space: what stage 1 compares: "camera_centred" (prototypes minus the mean of their camera key) or "raw".
      metric_rounds: how often the pair metric is learnt on that, each time from the mutual pairs that the last one
        gives; 0 = plain cosines. metric_floor: share of the mean variance that is added to every direction's.
      stage2_space: of stage 1's features, mixed with their positives': minus the mean of their camera key
        ("camera_centred") or of their modality ("centred"), as they are ("aggregated"), or as the per-camera softmax of
        their similarities ("softmax_code"); or prototypes alone ("raw").
      look_alikes: whether look-alikes are found; off where one prototype is all that a camera saw of a person.
      look_alike_kappa: κ_ν; num_look_alikes: Q, the width of the memory's list.
      min_concentration: ρ_min, prototypes below it are not mined (they keep their intra-camera loss); 0 mines all.
      block: rows compared at a time; memory is block × K floats.
    """

    candidates_per_camera: int = 1
    within_positives: int = 4
    cross_positives: int = 6
    delta: float = 0.1
    weight_temperature: float = 0.05
    threshold: Threshold = "dynamic"
    fixed_threshold: float = 0.5
    mutual: bool = True
    weights: Weights = "soft"
    aggregation: float = 0.5
    stage1_space: Space1 = "camera_centred"
    stage2_space: Space2 = "camera_centred"
    metric_rounds: int = 2
    metric_floor: float = 0.3
    look_alikes: bool = True
    look_alike_kappa: float = -2.0
    num_look_alikes: int = 8
    min_concentration: float = 0.0
    block: int = 1024

    def __post_init__(self):
        check(vars(self), VALUES, "association.")


VALUES = {
    **dict.fromkeys(("candidates_per_camera", "within_positives", "cross_positives", "num_look_alikes"), whole(1)),
    **defaulted({"block": whole(1)}),
    "delta": non_negative,
    "weight_temperature": positive,
    "threshold": one_of(get_args(Threshold)),
    "fixed_threshold": number(-1, 1),
    "weights": one_of(get_args(Weights)),
    "stage1_space": one_of(get_args(Space1)),
    "stage2_space": one_of(get_args(Space2)),
    "metric_rounds": whole(0),
    "metric_floor": positive,
    **dict.fromkeys(("aggregation", "min_concentration"), fraction),
    **dict.fromkeys(("mutual", "look_alikes"), flag),
    "look_alike_kappa": number(),
}


class Positives(NamedTuple):
    """Mined positives of every prototype, best first."""

    index: Int[Array, "slots positives"]
    weight: Float[Array, "slots positives"]  # rows sum to 1, or to 0 without a positive
    threshold: Float[Array, " groups"]  # one for each block of rows; −1 when no threshold is used
    floor: Float[Array, " slots"]  # min(threshold of the block, row best); the row best when no threshold is used


def _top(
    values: Float[Array, "*rows entries"], count: int
) -> tuple[Float[Array, "*rows {count}"], Int[Array, "*rows {count}"]]:
    """The `count` largest of the last axis: values, and indices that are −1 where only masked entries were left."""
    kept = min(count, values.shape[-1])
    value, index = jax.lax.top_k(values, kept)
    index = jnp.where(value > MASKED / 2, index, -1)
    padding = [(0, 0)] * (values.ndim - 1) + [(0, count - kept)]
    return jnp.pad(value, padding, constant_values=MASKED), jnp.pad(index, padding, constant_values=-1)


def _similarity_row(
    features: Float[Array, "slots dim"], row: Int[Array, ""], valid: Bool[Array, " slots"]
) -> Float[Array, " slots"]:
    """Similarities of one row to all other valid rows; the rest is masked."""
    similarity = jnp.matmul(features, features[row], precision=jax.lax.Precision.HIGHEST)
    others = valid & (jnp.arange(features.shape[0]) != row)
    return jnp.where(others & valid[row], similarity, MASKED)


@functools.partial(jax.jit, static_argnames=("num_cameras", "candidates", "block"))
def camera_best(
    features: Float[Array, "slots dim"],
    camera: Int[Array, " slots"],
    valid: Bool[Array, " slots"],
    num_cameras: int,
    candidates: int = 1,
    block: int = 1024,
) -> tuple[
    Int[Array, "slots {num_cameras} {candidates}"],
    Float[Array, "slots {num_cameras} {candidates}"],
]:
    """For every prototype the most similar others of each camera (j of section 3.4).

    Args:
      features: rows compared by their inner product.
      num_cameras: C; candidates: R.

    Returns:
      index, best first, −1 where a camera has no other valid slot and in rows that are not valid;
      similarity, `MASKED` there. Equal similarities are ordered by slot number.
    """
    features = features.astype(jnp.float32)

    def of_row(
        row: Int[Array, ""],
    ) -> tuple[Float[Array, "cameras candidates"], Int[Array, "cameras candidates"]]:
        similarity = _similarity_row(features, row, valid)

        def of_camera(key: Int[Array, ""]) -> tuple[Float[Array, " candidates"], Int[Array, " candidates"]]:
            return _top(jnp.where(camera == key, similarity, MASKED), candidates)

        # One camera at a time: together they would be C × block × K floats.
        return jax.lax.map(of_camera, jnp.arange(num_cameras))

    similarity, index = jax.lax.map(of_row, jnp.arange(features.shape[0]), batch_size=block)
    return index, similarity


@functools.partial(jax.jit, static_argnames=("count", "block"))
def look_alikes(
    features: Float[Array, "slots dim"],
    camera: Int[Array, " slots"],
    valid: Bool[Array, " slots"],
    kappa: Scalar,
    count: int = 8,
    block: int = 1024,
) -> tuple[Int[Array, "slots {count}"], Float[Array, ""]]:
    """Prototypes of the same camera that are too similar to serve as negatives (ν, section 3.3).

    Of the `count` most similar ones of the own camera, those whose similarity reaches mean + κ_ν·std of the best
    same-camera similarities of all prototypes.

    Returns:
      index, best first, −1 = empty; threshold (0 when no camera has two slots).
    """
    features = features.astype(jnp.float32)

    def of_row(row: Int[Array, ""]) -> tuple[Float[Array, " count"], Int[Array, " count"]]:
        return _top(jnp.where(camera == camera[row], _similarity_row(features, row, valid), MASKED), count)

    value, index = jax.lax.map(of_row, jnp.arange(features.shape[0]), batch_size=block)
    best = value[:, 0]
    mean, std, _ = _statistics(best, best > MASKED / 2)
    threshold = mean + kappa * std
    return jnp.where(value >= threshold - TIE_TOLERANCE, index, -1), threshold


def _statistics(
    values: Float[Array, " slots"], member: Bool[Array, " slots"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Mean, population standard deviation and maximum of the members; 0, 0, 0 without any."""
    number = member.sum()
    mean = masked_mean(values, member, axis=None)
    variance = masked_mean(jnp.square(values - mean), member, axis=None)
    largest = jnp.max(values, where=member, initial=MASKED)
    return mean, jnp.sqrt(variance), jnp.where(number > 0, largest, 0.0)


def mutual(
    index: Int[Array, "slots cameras candidates"], camera: Int[Array, " slots"]
) -> Bool[Array, "slots cameras candidates"]:
    """Which entries of a best table hold in both directions.

    Entry l of row k holds when k is among l's best of k's camera. Gathers only: no K × K matrix.
    """
    slot = jnp.arange(index.shape[0])[:, None, None]
    back = index[jnp.maximum(index, 0), jnp.maximum(camera, 0)[:, None, None]]  # [K, C, R, R]
    return (back == slot[..., None]).any(axis=-1) & (index >= 0)


@functools.partial(jax.jit, static_argnames=("num_groups", "positives", "config"))
def mine(
    index: Int[Array, "slots cameras candidates"],
    similarity: Float[Array, "slots cameras candidates"],
    candidate: Bool[Array, "slots cameras"],
    group: Int[Array, " slots"],
    num_groups: int,
    camera: Int[Array, " slots"],
    kappa: Scalar,
    positives: int,
    config: AssociationConfig,
) -> Positives:
    """Positives from a best table: dynamic threshold, mutual test, soft weights (section 3.4).

    Args:
      index, similarity: from `camera_best`.
      candidate: cameras in which a row may have positives.
      group: rows that share a threshold; num_groups: G.
      kappa: κ of the threshold mean + κ·std; traced, so that it may change every epoch.
      positives: P, the most that a row keeps.
    """
    allowed = candidate[:, :, None] & (index >= 0)
    best = jnp.max(similarity, axis=(1, 2), where=allowed, initial=MASKED)
    mined_row = best > MASKED / 2
    if config.threshold == "dynamic":
        member = (group == jnp.arange(num_groups)[:, None]) & mined_row
        mean, std, largest = jax.vmap(_statistics, in_axes=(None, 0))(best, member)
        threshold = jnp.minimum(mean + kappa * std, largest)
        floor = jnp.minimum(threshold[jnp.maximum(group, 0)], best)
    elif config.threshold == "fixed":
        threshold = jnp.full(num_groups, config.fixed_threshold, jnp.float32)
        floor = jnp.minimum(threshold[jnp.maximum(group, 0)], best)
    else:
        threshold = jnp.full(num_groups, -1.0, jnp.float32)
        floor = best

    if config.mutual:
        allowed &= mutual(index, camera)
    if config.threshold != "none":
        row_threshold = jnp.maximum(threshold[jnp.maximum(group, 0)], best - config.delta)
        allowed &= similarity >= row_threshold[:, None, None] - TIE_TOLERANCE

    rows = index.shape[0]
    value, order = _top(jnp.where(allowed, similarity, MASKED).reshape(rows, -1), positives)
    kept = order >= 0
    chosen = jnp.take_along_axis(index.reshape(rows, -1), jnp.maximum(order, 0), axis=1)
    if config.weights == "soft":
        weight = jnp.where(kept, jnp.exp((value - value[:, :1]) / config.weight_temperature), 0.0)
    else:
        weight = kept.astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    return Positives(jnp.where(kept, chosen, -1), weight, threshold, floor)


@jax.jit
def aggregate(
    features: Float[Array, "slots dim"],
    index: Int[Array, "slots positives"],
    weight: Float[Array, "slots positives"],
    share: Scalar = 0.5,
) -> Float[Array, "slots dim"]:
    """Features mixed with those of their positives, q of section 3.4: unit rows.

    Args:
      weight: rows sum to 1 (or 0).
      share: of the positives; a row without a positive keeps its feature.
    """
    # One positive at a time: together they would be K × P × D floats.
    mixture = sum(weight[:, [p]] * features[jnp.maximum(index[:, p], 0)] for p in range(index.shape[1]))
    has_positive = (index >= 0).any(axis=1, keepdims=True)
    return jnp.where(has_positive, unit_rows((1.0 - share) * features + share * mixture), features)


@functools.partial(jax.jit, static_argnames="num_groups")
def centre(
    features: Float[Array, "slots dim"],
    group: Int[Array, " slots"],
    valid: Bool[Array, " slots"],
    num_groups: int,
) -> Float[Array, "slots dim"]:
    """Features minus the mean of the valid slots of their camera key or modality, unit rows again (section 3.4); 0 if
    not valid, and where a group has one slot."""
    member = ((group == jnp.arange(num_groups)[:, None]) & valid).astype(jnp.float32)  # [G, K]
    total = jnp.matmul(member, features, precision=jax.lax.Precision.HIGHEST)
    mean = total / jnp.maximum(member.sum(axis=1, keepdims=True), 1.0)
    return jnp.where(valid[:, None], unit_rows(features - mean[jnp.maximum(group, 0)]), 0.0)


@functools.partial(jax.jit, static_argnames=("num_cameras", "rounds", "block"))
def pair_metric(
    features: Float[Array, "slots dim"],
    camera: Int[Array, " slots"],
    valid: Bool[Array, " slots"],
    num_cameras: int,
    rounds: int,
    floor: Scalar = 0.3,
    block: int = 1024,
) -> Float[Array, "slots dim"]:
    """Features g in which mutual pairs lie close (section 3.4): unit rows, 0 if not valid.

    A direction in which pairs of two cameras, each the other's most similar of its camera, differ much tells little
    about who it is. With Σ the mean of (x_k − x_l)(x_k − x_l)ᵀ over these pairs, s̄ the mean of its eigenvalues,
    g_k = normalize((Σ + floor · s̄ · I)^(−½) x_k); the next round takes the pairs that g gives.
    """
    x = features.astype(jnp.float32)
    highest = jax.lax.Precision.HIGHEST
    keys = jnp.arange(num_cameras)

    def of_round(g: Float[Array, "slots dim"], _: None) -> tuple[Float[Array, "slots dim"], None]:
        index, _ = camera_best(g, camera, valid, num_cameras, 1, block)
        paired = (mutual(index, camera) & (camera[:, None] != keys)[..., None])[..., 0]  # [K, C]

        def add(total: Float[Array, "dim dim"], key: Int[Array, ""]) -> tuple[Float[Array, "dim dim"], None]:
            apart = jnp.where(paired[:, [key]], x - x[jnp.maximum(index[:, key, 0], 0)], 0.0)
            return total + jnp.matmul(apart.T, apart, precision=highest), None

        total, _ = jax.lax.scan(add, jnp.zeros((x.shape[1], x.shape[1])), keys)
        s, u = jnp.linalg.eigh(total / jnp.maximum(paired.sum(), 1))
        scale = jax.lax.rsqrt(jnp.maximum(s, 0.0) + jnp.maximum(floor * s.mean(), 1e-12))
        rotated = jnp.matmul(x, u, precision=highest)
        return unit_rows(jnp.matmul(rotated * scale, u.T, precision=highest)), None

    g, _ = jax.lax.scan(of_round, unit_rows(x), None, rounds)
    return jnp.where(valid[:, None], g, 0.0)


@functools.partial(jax.jit, static_argnames=("num_cameras", "block"))
def softmax_code(
    features: Float[Array, "slots dim"],
    camera: Int[Array, " slots"],
    valid: Bool[Array, " slots"],
    num_cameras: int,
    block: int = 1024,
) -> Float[Array, "slots slots"]:
    """Prototypes described by what they resemble in each camera: unit rows.

    For every camera the softmax over 20 times the similarities to its prototypes; the cameras' softmaxes side
    by side, normalized. Takes K² floats, so it is for ablations of moderate size.
    """
    features = features.astype(jnp.float32)

    def of_row(row: Int[Array, ""]) -> Float[Array, " slots"]:
        logits = SOFTMAX_CODE_SCALE * jnp.matmul(features, features[row], precision=jax.lax.Precision.HIGHEST)
        member = (camera == jnp.arange(num_cameras)[:, None]) & valid  # [C, K]
        largest = jnp.max(logits, axis=-1, where=member, initial=MASKED)[jnp.maximum(camera, 0)]
        power = jnp.where(valid, jnp.exp(logits - largest), 0.0)
        total = jnp.where(member, power, 0.0).sum(axis=-1)[jnp.maximum(camera, 0)]
        return unit_rows(jnp.where(valid[row], power / jnp.maximum(total, 1e-12), 0.0))

    return jax.lax.map(of_row, jnp.arange(features.shape[0]), batch_size=block)


def within_representation(memory: PrototypeMemory, config: AssociationConfig) -> Float[Array, "slots dim"]:
    """What stage 1 compares: prototypes after `config.stage1_space` and the pair metric."""
    features = memory.feature
    if config.stage1_space == "camera_centred":
        features = centre(features, memory.camera, memory.valid, memory.num_cameras)
    if config.metric_rounds:
        rounds, floor = config.metric_rounds, config.metric_floor
        features = pair_metric(features, memory.camera, memory.valid, memory.num_cameras, rounds, floor, config.block)
    return features


def cross_representation(memory: PrototypeMemory, config: AssociationConfig) -> Float[Array, "slots features"]:
    """What stage 2 compares ([K, K] for softmax codes): `memory.within_space` mixed with that of stage 1's positives,
    after `config.stage2_space`."""
    if config.stage2_space == "raw":
        return memory.feature
    features = memory.within_space
    if config.aggregation > 0:
        features = aggregate(features, memory.within_index, memory.within_weight, config.aggregation)
    if config.stage2_space == "camera_centred":
        return centre(features, memory.camera, memory.valid, memory.num_cameras)
    if config.stage2_space == "centred":
        return centre(features, memory.modality, memory.valid, memory.num_modalities)
    if config.stage2_space == "softmax_code":
        return softmax_code(features, memory.camera, memory.valid, memory.num_cameras, config.block)
    return features


def associate(memory: PrototypeMemory, kappa: Scalar, config: AssociationConfig) -> PrototypeMemory:
    """Renews look-alikes and positives of all prototypes: look-alikes, stage 1, aggregation, stage 2 (section 3.4).

    Args:
      memory: prototypes of this epoch.
      kappa: κ of the epoch; a traced scalar.
      config: static.

    Raises:
      UserError: the memory's lists have other widths than the config's.
    """
    widths = (memory.within_index.shape[1], memory.cross_index.shape[1], memory.look_alike_index.shape[1])
    wanted = (config.within_positives, config.cross_positives, config.num_look_alikes)
    if widths != wanted:
        raise UserError(
            f"prototype memory has lists of widths (within, cross, look-alikes) {widths}, the association config "
            f"asks for {wanted}; make the memory with the config's numbers"
        )
    return associate_cross(associate_within(memory, kappa, config), kappa, config)


def _best_of(
    memory: PrototypeMemory, space: Float[Array, "slots features"], config: AssociationConfig
) -> tuple[Int[Array, "slots cameras candidates"], Float[Array, "slots cameras candidates"]]:
    """`camera_best` of what a stage compares, among the prototypes that are concentrated enough to be mined."""
    mined = memory.valid & (memory.concentration >= config.min_concentration)
    return camera_best(space, memory.camera, mined, memory.num_cameras, config.candidates_per_camera, config.block)


def associate_within(memory: PrototypeMemory, kappa: Scalar, config: AssociationConfig) -> PrototypeMemory:
    """Look-alikes, and stage 1: mines the other cameras of the own modality, on `within_representation`, with a
    threshold for each modality. Look-alikes are of one camera, and found on the prototypes themselves."""
    neutral = jnp.full_like(memory.look_alike_index, -1)
    neutral_threshold = jnp.ones((), jnp.float32)
    if config.look_alikes:
        neutral, neutral_threshold = look_alikes(
            memory.feature, memory.camera, memory.valid, config.look_alike_kappa, config.num_look_alikes, config.block
        )
    space = within_representation(memory, config)
    own_camera = memory.camera[:, None] == jnp.arange(memory.num_cameras)
    within = mine(
        *_best_of(memory, space, config),
        candidate=(memory.modality[:, None] == memory.camera_modality) & ~own_camera,
        group=memory.modality,
        num_groups=memory.num_modalities,
        camera=memory.camera,
        kappa=kappa,
        positives=config.within_positives,
        config=config,
    )
    return memory.replace(
        look_alike_index=neutral,
        look_alike_threshold=neutral_threshold,
        within_index=within.index,
        within_weight=within.weight,
        within_threshold=within.threshold,
        within_floor=within.floor,
        within_space=space,
    )


def associate_cross(memory: PrototypeMemory, kappa: Scalar, config: AssociationConfig) -> PrototypeMemory:
    """Stage 2: mines all cameras of the other modality, on `cross_representation`, with one threshold."""
    space = cross_representation(memory, config)
    cross = mine(
        *_best_of(memory, space, config),
        candidate=memory.modality[:, None] != memory.camera_modality,
        group=jnp.zeros_like(memory.modality),
        num_groups=1,
        camera=memory.camera,
        kappa=kappa,
        positives=config.cross_positives,
        config=config,
    )
    return memory.replace(
        cross_index=cross.index,
        cross_weight=cross.weight,
        cross_threshold=cross.threshold[0],
        cross_floor=cross.floor,
        cross_space=space,
    )
