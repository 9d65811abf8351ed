"""HiTPro on `walkers` over seeds: before training, after it, and the supervised bound beside it.

    python benchmarks/hitpro_walkers.py --out runs/seeds [--seeds 1 2 3] [--dataset vvi] [--config.key=value …]

Runs the main job once per seed and method (finished runs are not repeated) and prints the table of
`jaxreid compare`. Further `--config.…` arguments go to every HiTPro run.
"""

import argparse
import sys

from runs import train

from jaxreid.files import expand
from jaxreid.tools import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=expand, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dataset", default="vvi")
    parser.add_argument("--name", default="hitpro", help="what the HiTPro runs are called under --out")
    parser.add_argument("--no-bound", action="store_true", help="leave the supervised baseline out")
    arguments, extra = parser.parse_known_args()
    methods = {"hitpro": arguments.name} | ({} if arguments.no_bound else {"baseline": "baseline"})
    workdirs = {
        (method, seed): arguments.out / f"{name}-{seed}" for seed in arguments.seeds for method, name in methods.items()
    }
    for (method, seed), workdir in workdirs.items():
        train(method, arguments.dataset, seed, workdir, extra if method == "hitpro" else [])
    sys.exit(compare.main([*map(str, workdirs.values()), "--controls", f"--out={arguments.out / 'compare'}"]))


if __name__ == "__main__":
    main()
