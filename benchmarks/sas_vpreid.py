"""SAS-VPReID on the drawn world `aerial`: one of its parts after another on its baseline, by condition.

    python benchmarks/sas_vpreid.py --out runs/sas_vpreid [--world aerial] [--seeds 1 2 3] [--rows …] [--config.k=v …]

Trains each row once per seed (finished runs are not repeated, stopped ones go on), scores it under every rule
(`jaxreid xfd evaluate`) and prints Markdown: the table of `jaxreid compare` by condition, and the scores under each
rule. Beside it are the supervised baseline, VSLA-CLIP (the organisers' baseline) and CLIP for extreme far distance. The
rows of `ONE_SEED` are run with one. The paper's larger tower is no row: there is one small tower for drawn people.
`--config.…` goes to every run; built sets are looked for in $JAXREID_DATA_DIR.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vreid_xfd import ROWS as ANCESTORS
from vreid_xfd import shown

from jaxreid.config import config_module, find_config

WITHOUT = config_module(Path(find_config("sas_vpreid"))).WITHOUT
NO_SHAPE: dict[str, Any] = {
    "prsd.enabled": False,
    **dict.fromkeys(("triplet.features", "embedding"), ("last", "projected", "temporal")),
}
NO_MAMBA: dict[str, Any] = {
    "mgtm.enabled": False,
    **dict.fromkeys(("triplet.features", "embedding"), ("last", "projected", "shape")),
}
ONE_RATE: dict[str, Any] = {"module_rates": False}
NO_JITTER: dict[str, Any] = {"augment.hue": 0.0}

# Row → config and what differs from it: the paper's ablation, each row with what the one before has.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **ANCESTORS,
    "CLIP-XFD": ("clip_xfd", {}),
    "one learning rate, no jitter, no MGTM, no PRSD": ("sas_vpreid", WITHOUT | ONE_RATE | NO_JITTER),
    "+ learning rates of modules": ("sas_vpreid", WITHOUT | NO_JITTER),
    "+ jitter of clips": ("sas_vpreid", WITHOUT),
    "+ MGTM": ("sas_vpreid", NO_SHAPE),
    "+ PRSD": ("sas_vpreid", {}),  # all of it
}
ONE_SEED: dict[str, tuple[str, dict[str, Any]]] = {
    "PRSD without MGTM": ("sas_vpreid", NO_MAMBA),
    "jitter of every frame": ("sas_vpreid", {"augment.per_frame": ("erase_size", "jitter")}),
    "no memory": ("sas_vpreid", {"weights.bank": 0.0}),
    "memory moves as released": ("sas_vpreid", {"memory.per_sample": True}),
    "no camera": ("sas_vpreid", {"sie.columns": ()}),
    "no prior": ("sas_vpreid", {"weights.prior": 0.0}),
    "shape network stays as it is": ("sas_vpreid", {"prsd.train": False}),
    "tested without Mamba's and the shape's feature": ("sas_vpreid", {"embedding": ("last", "projected")}),
    "sixteen states, channels twice as wide": ("sas_vpreid", {"mgtm.state": 16, "mgtm.expand": 2}),
    "as released": ("sas_vpreid", {"released": True, "memory.per_sample": True}),
}


def main() -> None:
    shown(__doc__, ROWS, ONE_SEED)


if __name__ == "__main__":
    main()
