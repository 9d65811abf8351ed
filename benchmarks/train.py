"""Training steps of jaxreid beside PyTorch's for the same model and loss, as JSON lines.

    python benchmarks/train.py [--towers ViT-B/16 ViT-L/14] [--identities 8] [--clips 4] [--frames 8] [--steps 20]
                               [--contenders jaxreid torch torch.compile] [--precision bfloat16] [--out FILE]

The supervised baseline: every frame of a clip through the tower, mean over frames, batch-norm neck, classifier of 2048
identities; smoothed cross entropy and batch-hard triplets; AdamW on everything. A step takes a batch of bytes on the
host, as a loader delivers them, and includes its way to the device. PyTorch runs scaled_dot_product_attention under
autocast, with fused AdamW on a GPU. Contenders run one after the other, each in a process of its own.

`frames_per_second` is of the quickest of three turns of `--steps` steps after warming up. `mfu` is the work of forward
and backward pass (three times the forward pass) over time and `peak_tflops`, what a large matrix product of that
precision reaches in the same process with the same library. `peak_mb` is device memory, on a CPU that of the process.
`loss` is that of the first step, from different random weights. On CPUs only the ratio means something: take
`--identities 2 --clips 2 --frames 2 --steps 3 --precision float32`. Needs jax, flax, optax and torch alone.

    python benchmarks/train.py --method NAME[:PRESET] … [--set KEY=VALUE …] [--steps 20] [--data_dir DIR] [--out FILE]

Instead of that, a line for each stage of methods as their presets have them ("all": every config's first preset), on
one device, each method in a process of its own. `basis` says of each figure whether it is calculated from shapes, of
the program that was compiled (for which backend), or measured (on what). `tflop_per_step` is the mathematics of all its
updates; `kept_gib` what their backward pass needs at most; `memory_gib` all that the compiled step holds; `mfu` the
share of `peak_tflops`; `programs` those of a whole run. `--steps 0` runs no step. A stage that looks at no frames has
`clips_per_second` alone.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
import types
from pathlib import Path

import numpy as np

from jaxreid.files import expand

CLASSES, SIZE, SMOOTHING, MARGIN, RATE, DECAY = 2048, (256, 128), 0.1, 0.3, 5e-6, 1e-4
WARM, TURNS = 3, 3


def host_batches(args, count=4):
    """A few batches: frames u8[B, T, H, W, 3] and identities i32[B]."""
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(args.identities, dtype=np.int32), args.clips)
    shape = (len(identity), args.frames, *SIZE, 3)
    return [(rng.integers(0, 256, shape, np.uint8), (identity + i * args.identities) % CLASSES) for i in range(count)]


def seconds_per_step(step, wait, steps):
    """The quickest of some turns; `step(i)` may return before the device is done, `wait()` does not."""
    best = np.inf
    for turn in range(TURNS + 1):
        start, count = time.perf_counter(), steps if turn else WARM
        for i in range(count):
            step(i)
        wait()
        best = min(best, (time.perf_counter() - start) / count) if turn else best
    return best


def peak_tflops(product, wait, size):
    """`product()` multiplies two square matrices of this size."""
    count = 10
    seconds = seconds_per_step(lambda i: product(), wait, count)
    return 2 * size**3 / seconds / 1e12


def matrix_size(accelerated):
    return 8192 if accelerated else 2048


# ------------------------------------------------------------------------------------------------------- jaxreid


def run_jaxreid(args, tower):
    import jax
    import jax.numpy as jnp

    from jaxreid.augment import Pixels
    from jaxreid.backbones.flops import vit_flops
    from jaxreid.data.batch import Batch
    from jaxreid.dataset_info import DatasetInfo
    from jaxreid.devices import parallel
    from jaxreid.methods.baseline import Baseline
    from jaxreid.training import steps

    config = types.SimpleNamespace(
        backbone=types.SimpleNamespace(name=tower, checkpoint="", remat=args.remat, scan=args.scan, stride=0),
        precision=args.precision,
        batch=types.SimpleNamespace(
            num_identities=args.identities, num_instances=args.clips, seq_len=args.frames, piece_len=0
        ),
        optimizer={"name": "adamw", "lr": RATE, "weight_decay": DECAY, "groups": (), "clip_norm": 0.0},
        schedule={"name": "constant"},
        augment={"crop": 10, "flip": 0.5, "erase": 0.5} if args.augment else {},
        epochs=1,
        label_smoothing=SMOOTHING,
        triplet=types.SimpleNamespace(margin=MARGIN, soft_margin=False, metric="euclidean", weight=1.0),
    )
    info: object = DatasetInfo(name="", table=None, cameras=np.zeros(1), frame_size=SIZE, num_classes=CLASSES)
    method, mesh = Baseline(config, info), parallel.make_mesh(devices=1)
    stage = method.stages()[0]
    dtype = jnp.dtype(args.precision)
    pixels = Pixels((0.48, 0.46, 0.41), (0.27, 0.26, 0.28), dtype)

    def batch_of(frames, identity):
        clips = len(frames)
        columns = dict.fromkeys((name for name in Batch.__annotations__ if name != "extras"), np.zeros(clips, np.int32))
        columns |= {"frames": frames, "frame_mask": np.ones(frames.shape[:2], bool), "valid": np.ones(clips, bool)}
        return Batch(**columns | {"identity": identity, "geometry": np.zeros((clips, 3), np.float32)})

    batches = [batch_of(*each) for each in host_batches(args)]
    example = batches[0].replace(frames=jnp.zeros(batches[0].frames.shape, dtype))

    def start(rng):
        return steps.init_train_state(stage, method.init(rng, example), {}, jnp.int32(0), rng)

    sharding = parallel.state_sharding(jax.eval_shape(start, jax.random.PRNGKey(0)), mesh)
    state, frozen = jax.jit(start, out_shardings=sharding)(jax.random.PRNGKey(0))
    step = steps.make_train_step(method, stage, pixels, mesh, sharding[0])
    progress = steps.progress_at(stage, 0, 0, 1)
    began = time.perf_counter()
    step.compile(state, frozen, parallel.to_global(batches[0], mesh), progress)
    compiling = time.perf_counter() - began
    held = {"state": state, "loss": []}

    def take(i):
        # Two batches ahead is what the loader does; the copy runs beside the step before.
        batch = parallel.to_global(batches[i % len(batches)], mesh)
        held["state"], metrics = step(held["state"], frozen, batch, progress)
        held["loss"].append(metrics["loss"])

    device = jax.devices()[0]
    accelerated = device.platform != "cpu"
    seconds = seconds_per_step(take, lambda: jax.block_until_ready(held["state"]), args.steps)
    stats = device.memory_stats() or {}
    size = matrix_size(accelerated)
    a = jnp.ones((size, size), dtype)
    product, found = jax.jit(lambda a: a @ a), {}
    peak = peak_tflops(lambda: found.update(x=product(a)), lambda: jax.block_until_ready(found), size)
    return {
        "device": f"{device.platform} {device.device_kind}",
        "seconds": seconds,
        "compile_seconds": compiling,
        "loss": float(held["loss"][0]),
        "peak_mb": stats.get("peak_bytes_in_use", 0) / 2**20,
        "peak_tflops": peak,
        "flops_per_frame": vit_flops(method.tower, class_token_only=True),
        "version": jax.__version__,
    }


# ------------------------------------------------------------------------------------------------------- PyTorch


def torch_model(tower, frames_size, torch):
    """The same network as plain modules."""
    from jaxreid.backbones.clip import vision_config

    nn, functional = torch.nn, torch.nn.functional
    config = vision_config(tower, frames_size)
    width, heads = config.width, config.heads

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            count, tokens, _ = x.shape
            q, k, v = self.qkv(self.norm_1(x)).view(count, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v)
            x = x + self.out(mixed.transpose(1, 2).reshape(count, tokens, width))
            h = self.up(self.norm_2(x))
            return x + self.down(h * torch.sigmoid(1.702 * h))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, width, config.patch, config.patch_stride, bias=False)
            self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
            self.position = nn.Parameter(torch.randn(config.tokens, width) * width**-0.5)
            self.norm_pre, self.norm_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.blocks = nn.ModuleList([Block() for _ in range(config.depth)])
            self.neck, self.classifier = nn.BatchNorm1d(width), nn.Linear(width, CLASSES, bias=False)

        def forward(self, pixels, clips):
            x = self.patches(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_token.expand(len(x), 1, -1).to(x.dtype), x], dim=1) + self.position
            x = self.norm_pre(x)
            for block in self.blocks:
                x = block(x)
            feature = self.norm_post(x[:, 0]).view(clips, -1, width).float().mean(1)
            return feature, self.classifier(self.neck(feature))

    return Network()


def run_torch(args, tower, compiled=False):
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    half = args.precision == "bfloat16"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if half else "highest")
    network = torch_model(tower, SIZE, torch).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY, fused=cuda)
    mean = torch.tensor((0.48, 0.46, 0.41), device=device).view(3, 1, 1)
    std = torch.tensor((0.27, 0.26, 0.28), device=device).view(3, 1, 1)

    def loss_of(frames, identity):
        pixels = (frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            feature, logits = network(pixels, len(frames))
        identity_loss = torch.nn.functional.cross_entropy(logits.float(), identity, label_smoothing=SMOOTHING)
        feature = feature.float()
        distance = torch.cdist(feature, feature, compute_mode="donot_use_mm_for_euclid_dist")
        same = identity[:, None] == identity
        hardest = torch.where(same, distance, -1.0).amax(1)
        nearest = torch.where(same, torch.inf, distance).amin(1)
        return identity_loss + torch.relu(hardest - nearest + MARGIN).mean()

    function = torch.compile(loss_of) if compiled else loss_of
    batches = [
        tuple(
            torch.from_numpy(x).pin_memory() if cuda else torch.from_numpy(x)
            for x in (frames, identity.astype(np.int64))
        )
        for frames, identity in host_batches(args)
    ]
    held = {"loss": []}

    def take(i):
        frames, identity = (x.to(device, non_blocking=True) for x in batches[i % len(batches)])
        optimizer.zero_grad(set_to_none=True)
        loss = function(frames, identity)
        loss.backward()
        optimizer.step()
        held["loss"].append(loss.detach())

    def wait():
        if cuda:
            torch.cuda.synchronize()

    began = time.perf_counter()
    take(0)
    wait()
    first = time.perf_counter() - began
    seconds = seconds_per_step(take, wait, args.steps)
    peak_mb = torch.cuda.max_memory_allocated() / 2**20 if cuda else 0
    size = matrix_size(cuda)
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if half else torch.float32)
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "seconds": seconds,
        "compile_seconds": max(first - seconds, 0.0),
        "loss": float(held["loss"][0]),
        "peak_mb": peak_mb,
        "peak_tflops": peak_tflops(lambda: torch.mm(a, a), wait, size),
        "version": torch.__version__,
    }


CONTENDERS = {
    "jaxreid": run_jaxreid,
    "torch": run_torch,
    "torch.compile": lambda args, tower: run_torch(args, tower, compiled=True),
}


def measure(args, tower, contender, answer):
    found = CONTENDERS[contender](args, tower)
    if not found["peak_mb"]:
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    answer.put(found)


def measure_method(args, name, answer):
    sys.path.append(str(Path(__file__).parent.parent))
    from benchmarks.method_steps import measure, values

    config, _, preset = name.partition(":")
    found = measure(config, preset, values(args.set), args.steps, args.data_dir, seconds_per_step, peak_tflops)
    answer.put([row | {"load": os.getloadavg()[0]} for row in found])


def answer_of(target, *arguments):
    """What a function puts into its last argument, a queue, in a process of its own; else the exit code of that."""
    processes = multiprocessing.get_context("spawn")
    answer = processes.Queue()
    process = processes.Process(target=target, args=(*arguments, answer))
    process.start()
    while process.is_alive() and answer.empty():
        process.join(0.2)
    if answer.empty():
        return process.exitcode
    found = answer.get()
    process.join()
    return found


def write(row, out):
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    print(line, flush=True)
    if out:
        with open(out, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=["ViT-B/16", "ViT-L/14"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--identities", type=int, default=8)
    parser.add_argument("--clips", type=int, default=4, help="of each identity")
    parser.add_argument("--frames", type=int, default=8, help="of a clip")
    parser.add_argument("--steps", type=int, default=20, help="in a turn")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--remat", action="store_true", help="jaxreid alone: recompute blocks in the backward pass")
    parser.add_argument("--scan", action="store_true", help="jaxreid alone: compile one block and loop over it")
    parser.add_argument("--augment", action="store_true", help="jaxreid alone: crop, flip and erase on the device")
    parser.add_argument("--method", nargs="+", metavar="NAME[:PRESET]", help="methods instead of towers, or all")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="config values of the methods")
    parser.add_argument("--data_dir", type=expand, help="where built data sets live")
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    if args.method:
        configs = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py"))
        for name in configs if args.method == ["all"] else args.method:
            found = answer_of(measure_method, args, name)
            if isinstance(found, list):
                for row in found:
                    write(row, args.out)
            else:
                print(f"{name} ended with code {found}", file=sys.stderr)
        return
    for tower in args.towers:
        rows = {}
        for contender in args.contenders:
            found = answer_of(measure, args, tower, contender)
            if isinstance(found, dict):
                rows[contender] = found
            else:
                print(f"{contender} on {tower} ended with code {found}", file=sys.stderr)
        work = rows["jaxreid"].pop("flops_per_frame", 0) if "jaxreid" in rows else 0
        frames = args.identities * args.clips * args.frames
        for contender, found in rows.items():
            row = {
                "tower": tower,
                "contender": contender,
                "batch": f"{args.identities}x{args.clips}x{args.frames}",
                "precision": args.precision,
                "remat": args.remat,
                "scan": args.scan,
                "augment": args.augment,
                "frames_per_second": frames / found["seconds"],
                **found,
                "mfu": 3 * work * frames / found["seconds"] / 1e12 / found["peak_tflops"] if work else None,
                "times_jaxreid": found["seconds"] / rows["jaxreid"]["seconds"] if "jaxreid" in rows else None,
                "load": os.getloadavg()[0],
            }
            write(row, args.out)


if __name__ == "__main__":
    main()
