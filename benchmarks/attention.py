"""Forms of attention in turns, alone and within whole jobs, as JSON lines.

    python benchmarks/attention.py [--jobs alone block step] [--tokens 129 197 257] [--heads 12 16] [--frames 32]
                                   [--precisions bfloat16 float32] [--forms library xla …] [--turns 5]
                                   [--out FILE]

Jobs: `alone`, heads of 64 channels; `block`, a block of ViT-B/16 on 129 tokens; `step`, the training step of
`hitpro:walkers`, in its own precision and with an empty memory. Forms: `library`, `jaxreid.backbones.attention.attend`
as this device computes it; `xla`, jax's without a kernel; `written_out`, two products and a softmax over transposed
arrays; and alone `torch`, scaled_dot_product_attention.

Milliseconds are those of the quickest turn, and forms take turns, so that all meet the same neighbours: `forward` pass
alone, `both` with the gradients of all arguments; `ratio` is `both` over that of the first form, `gap` the largest
difference of the output to its (alone and block). Inputs are [frames, tokens, heads, 64] in jax, and for PyTorch
transposed views of them, as towers hold them. What a platform does not have is a line with the reason.
"""

import argparse
import contextlib
import functools
import json
import os
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones import attention
from jaxreid.backbones.clip import vision_config
from jaxreid.backbones.transformer import Block
from jaxreid.files import expand

CHANNELS = 64


def written_out(q, k, v, mask=None, is_causal=False, implementation=None):
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=jnp.float32)
    for seen in (mask, jnp.tri(*scores.shape[-2:], dtype=bool) if is_causal else None):
        scores = scores if seen is None else jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    mixed = jax.nn.softmax(scores, axis=-1).astype(v.dtype) @ v
    return mixed.transpose(0, 2, 1, 3)


@contextlib.contextmanager
def traced_with(form):
    """What is traced inside computes attention in this form."""
    with contextlib.ExitStack() as stack:
        if form != "library":
            stack.enter_context(mock.patch.object(attention, "_has_cudnn_attention", lambda: False))
        if form == "written_out":
            stack.enter_context(mock.patch.object(jax.nn, "dot_product_attention", written_out))
        yield


# ---------------------------------------------------------------------------------------------------------- jobs
# Each gives calls that wait for their results, {"forward": …, "both": …}, compiled and run once; and the output.


def of_jax(form, function, arguments):
    """`forward` and `both` of function(*arguments) → array."""

    def forward(*arguments):  # a new function, which jax has not traced in another form
        return function(*arguments)

    def both(*arguments):
        out, pullback = jax.vjp(forward, *arguments)
        return pullback(out)

    def waiting(function):
        with traced_with(form):
            compiled = jax.jit(function).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    calls = {"forward": waiting(forward), "both": waiting(both)}
    calls["both"]()
    return calls, np.asarray(calls["forward"](), np.float32)


def alone(form, arrays, precision):
    if form == "torch":
        return of_torch(arrays, precision)
    return of_jax(form, attention.attend, [jnp.asarray(x, precision) for x in arrays])


def block(form, frames, precision):
    config = vision_config("ViT-B/16", (256, 128), dtype=jnp.dtype(precision))
    module = Block(config)
    x = jax.random.normal(jax.random.key(0), (frames, config.tokens, config.width), precision)
    variables = module.init(jax.random.key(1), x)
    return of_jax(form, lambda variables, x: module.apply(variables, x).tokens, (variables, x))


def step(form):
    """A step begins with what the one before left; there is no forward pass alone and no output to compare."""
    from jaxreid.run.model import abstract_batch
    from jaxreid.training.start import enter_stage
    from jaxreid.training.steps import make_train_step, progress_at

    run, rng = hitpro_run(), np.random.default_rng(0)
    (stage,) = run.method.stages()
    state, frozen = enter_stage(run, stage, None, None)

    def filled(leaf):
        numbers = rng.integers(0, 256, leaf.shape) if leaf.dtype == np.uint8 else np.ones(leaf.shape)
        return jax.device_put(numbers.astype(leaf.dtype), leaf.sharding)

    shapes = abstract_batch(run, stage.sampler.batch_size(run.method.info.columns), stage.seq_len, "train")
    batch, progress = jax.tree.map(filled, shapes), progress_at(stage, 0, 0, 1)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    train_step, held = make_train_step(run.method, stage, run.pixels, run.mesh, sharding), {"state": state}

    def both():
        held["state"], _ = train_step(held["state"], frozen, batch, progress)
        jax.block_until_ready(held["state"])

    with traced_with(form):
        both()
    return {"both": both}, None


@functools.cache
def hitpro_run():
    from configs import hitpro
    from jaxreid.run.model import start_run

    return start_run(hitpro.get_config("walkers"), "", None, dry=True)


def of_torch(arrays, precision):
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), getattr(torch, precision)
    q, k, v = (torch.tensor(x, dtype=dtype, device=device).transpose(1, 2).requires_grad_() for x in arrays)
    scaled = torch.nn.functional.scaled_dot_product_attention

    calls, _ = torch_calls(lambda: scaled(q, k, v), (q, k, v))
    return calls, calls["forward"]().transpose(1, 2).float().cpu().numpy()


def torch_calls(run, leaves):
    """`forward` and `both` of run() → tensor, with gradients of the leaves; and what it gives."""
    import torch

    def waited(out):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return out

    def forward():
        with torch.no_grad():
            return waited(run())

    def both():
        out = run()
        return waited(torch.autograd.grad(out, leaves, out.detach(), allow_unused=True))

    both()
    return {"forward": forward, "both": both}, forward().float().cpu().numpy()


# ----------------------------------------------------------------------------------------------------- comparing


def compare(make, forms, turns):
    """Form → its line's fields; `make(form)` gives calls and an output."""
    found, calls, expected = {}, {}, None
    for form in forms:
        try:
            calls[form], out = make(form)
        except Exception as error:  # every platform refuses in a type of its own
            found[form] = {"unavailable": str(error).strip().splitlines()[0][:200]}
            continue
        expected = out if expected is None else expected
        found[form] = {} if out is None else {"gap": float(np.abs(out - expected).max())}
        found[form] |= dict.fromkeys(calls[form], np.inf)
    for _ in range(turns):
        for form, own in calls.items():
            for kind, call in own.items():
                start = time.perf_counter()
                call()
                found[form][kind] = min(found[form][kind], 1e3 * (time.perf_counter() - start))
    for form in calls:
        found[form]["ratio"] = found[form]["both"] / found[forms[0]].get("both", np.nan)
    return found


def printed(row, out):
    """A line with the device and how busy the machine is, of four digits each; also added to the file `out`."""
    row = {**row, "device": jax.devices()[0].device_kind, "load": os.getloadavg()[0]}
    line = json.dumps({key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()})
    print(line, flush=True)
    if out:
        with open(out, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def cases(args):
    """(fields of a line, `make`, forms) of everything that is asked for."""
    rng, in_jax = np.random.default_rng(0), [form for form in args.forms if form != "torch"]
    for precision in args.precisions if "alone" in args.jobs else ():
        for tokens in args.tokens:
            for heads in args.heads:
                arrays = [rng.normal(size=(args.frames, tokens, heads, CHANNELS)).astype(np.float32) for _ in range(3)]
                fields = {"job": "alone", "tokens": tokens, "heads": heads, "frames": args.frames}
                make = functools.partial(alone, arrays=arrays, precision=precision)
                yield fields | {"precision": precision}, make, args.forms
    for precision in args.precisions if "block" in args.jobs else ():
        make = functools.partial(block, frames=args.frames, precision=precision)
        yield {"job": "block", "frames": args.frames, "precision": precision}, make, in_jax
    if "step" in args.jobs:
        yield {"job": "step"}, step, in_jax


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=["alone", "block", "step"], choices=["alone", "block", "step"])
    forms = ["library", "xla", "written_out", "torch"]
    parser.add_argument("--forms", nargs="+", default=forms, choices=forms)
    parser.add_argument("--tokens", nargs="+", type=int, default=[129, 197, 257])
    parser.add_argument("--heads", nargs="+", type=int, default=[12, 16])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    for fields, make, forms in cases(args):
        for form, found in compare(make, forms, args.turns).items():
            printed({**fields, "form": form, **found}, args.out)


if __name__ == "__main__":
    main()
