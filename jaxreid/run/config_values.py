"""What the keys that every run has may be, and whether a whole config makes sense.

Tables stand where their keys are read (`VALUES`, `…_VALUES`); those of `config.base_config` and of what all methods
share are here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxreid import augment
from jaxreid.backbones.frame_encoder import PRECISIONS, backbone_config, known_encoders
from jaxreid.config import flatten
from jaxreid.data.clips import RULES, TRAINING_CLIPS
from jaxreid.data.loader import INTERPOLATION, RESIZING
from jaxreid.data.prepared import SIXTEEN_BIT
from jaxreid.errors import UserError
from jaxreid.methods.method import OWN, POOLS, Method, find_method
from jaxreid.optimizers import OPTIMIZER_VALUES, SCHEDULE_VALUES
from jaxreid.retrieval.distances import DISTANCES, OF_ROWS
from jaxreid.retrieval.protocols import PROTOCOLS
from jaxreid.retrieval.rerank import RERANKING
from jaxreid.values import (
    faults,
    flag,
    fraction,
    free,
    one_of,
    positive,
    series,
    some_of,
    under,
    unset,
    whole,
    word,
)

LARGEST_SEED = 2**32 - 2  # jax takes 32 bits of a seed, and a run also uses the number that follows

BASE = {
    "name": word,
    "method": word,
    "preset": word,
    "seed": whole(0, LARGEST_SEED),
    "precision": one_of(PRECISIONS),
    **dict.fromkeys(("epochs", "extraction_batch_size", "log_every", "keep_checkpoints"), whole(1)),
    "evaluate_every": whole(0),
    **dict.fromkeys(("evaluate_start", "keep_best"), flag),
    **under("dataset", {"name": word, "config": free, "path": free}),  # checked when the data set is opened
    **under("dataset", dict.fromkeys(("train", "query", "gallery"), word)),
    "dataset.protocols": some_of(PROTOCOLS),
    "dataset.sixteen_bit": one_of(SIXTEEN_BIT),
    **under("frames", {"height": whole(1), "width": whole(1)}),
    **under("frames", {"mean": series(fraction, length=3), "std": series(positive, length=3)}),
    **under("loading", {"interpolation": one_of(INTERPOLATION), "prefetch": whole(1), "cache": flag}),
    **under("loading", {"test_interpolation": one_of(("", *INTERPOLATION)), "resize": one_of(RESIZING)}),
    **under("loading", dict.fromkeys(("threads", "workers"), whole(0))),
    **under(
        "evaluation", {"clip_sampling": one_of(RULES), "pool": one_of(POOLS), "distance": one_of((*DISTANCES, OWN))}
    ),
    **under("evaluation", {"normalize": flag, "flip": flag, "outputs": series(word, least=1)}),
    **under("evaluation", dict.fromkeys(("seq_len", "stride", "rerank_k1", "rerank_k2"), whole(1))),
    **under("evaluation", {"reranking": one_of(RERANKING), "rerank_lambda": fraction}),
    **under("evaluation", {"rerank_raw": flag, "open_set": flag}),
    **under("evaluation", {"rescore_size": whole(0), "rescore_mix": fraction, "rescore_block": whole(1)}),
    **under("mesh", {"devices": whole(0), "fsdp": whole(1)}),
    **under("backbone", {"name": one_of(known_encoders), "checkpoint": free}),  # checked when weights are loaded
    **under("backbone", {"remat": flag, "scan": flag, "stride": whole(0)}),
    **under(
        "batch",
        dict.fromkeys(
            ("num_identities", "num_instances", "num_pairs", "num_prototypes", "num_clusters", "seq_len", "parts"),
            whole(1),
        ),
    ),
    **under(
        "batch",
        {"piece_len": whole(0), "steps_per_epoch": whole(0), "clip_sampling": one_of(TRAINING_CLIPS), "aligned": flag},
    ),
    **under("optimizer", OPTIMIZER_VALUES),
    **under("schedule", SCHEDULE_VALUES),
    **under("augment", augment.VALUES),
}


def check_config(config: Any) -> None:
    """Checks every value of a run's config, before anything is opened, loaded or compiled.

    Raises:
      UserError: values that mean nothing, or do not go together; the message names key, value and what is allowed.
    """
    method, values = find_method(config.method), dict(flatten(config.to_dict()))
    table = {**BASE, **method.values}
    found = [*unset(values, method.values), *faults(values, table)]
    found += [
        f"config.{key} has no condition: {method.__name__}.values needs one" for key in values if key not in table
    ]
    found = found or [*_contradictions(config, values, method), *method.contradictions(config)]
    if found:
        raise UserError("; ".join(found))


def _contradictions(config: Any, values: dict[str, Any], method: type[Method]) -> Iterator[str]:
    if config.keep_best and not config.evaluate_every:
        yield "config.keep_best=True needs scores: config.evaluate_every must be at least 1"
    rule = config.evaluation
    if rule.reranking and rule.distance not in OF_ROWS:
        yield (
            f"config.evaluation.reranking={rule.reranking!r} needs the distance of one vector ({', '.join(OF_ROWS)}), "
            f"not config.evaluation.distance={rule.distance!r}"
        )
    if not rule.normalize and rule.pool == "after":
        yield 'config.evaluation.normalize=False pools features as they are: config.evaluation.pool must be "before"'
    if rule.rerank_raw and rule.normalize:
        yield "config.evaluation.rerank_raw=True needs features as they are: config.evaluation.normalize must be False"
    if size := rule.get("rescore_size"):
        if not method.scores_pairs():
            yield f"config.evaluation.rescore_size={size}: {method.__name__} has no score of pairs, it must be 0"
        if rule.distance != "cosine":
            yield (
                f"config.evaluation.rescore_size={size} takes the nearest by cosine: config.evaluation.distance must "
                f"be 'cosine', not {rule.distance!r}"
            )
    if len(set(rule.outputs)) != len(rule.outputs):
        yield f"config.evaluation.outputs={tuple(rule.outputs)} names one twice"
    if not method.sees_pictures:
        return
    backbone, size = config.backbone, method.tower_size(config)
    try:
        backbone_config(backbone, size, config.precision)
    except UserError as error:
        yield f"config.backbone.name={backbone.name!r} and config.frames.height, width={size}: {error}"
