"""Attention of a tower's block in every form that the platform has, beside PyTorch's, as JSON lines.

    python benchmarks/attention.py [--tokens 129 197 257] [--heads 12 16] [--frames 32] [--precisions bfloat16 float32]
                                   [--turns 5] [--out FILE]

Heads of 64 channels. Contenders: `library`, `jaxreid.backbones.transformer.attend`; `xla` and `cudnn`, the
implementations of jax.nn.dot_product_attention; `torch`, scaled_dot_product_attention. Inputs are
[frames, tokens, heads, 64] in jax, and for PyTorch transposed views of them, as towers hold them. `forward` and `both`
(the forward pass, and the gradients of queries, keys and values) are milliseconds of the quickest turn; contenders take
turns, so that all of them meet the same neighbours. `gap` is the largest difference of the output to that of `library`.
What a platform does not have is a line with the reason under `unavailable`.
"""

import argparse
import functools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxreid.backbones.transformer import attend
from jaxreid.files import expand

CHANNELS = 64


def of_jax(form, arrays, precision):
    """({"forward": function that waits for its result, "both": another}, facts); compiled, and run once."""
    q, k, v = (jnp.asarray(x, precision) for x in arrays)

    def both(q, k, v):
        out, pullback = jax.vjp(form, q, k, v)
        return pullback(out)

    def waiting(function):
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(q, k, v))

    calls = {"forward": waiting(form), "both": waiting(both)}
    calls["both"]()
    facts = {"device": jax.devices()[0].device_kind, "version": jax.__version__}
    return calls, facts, np.asarray(calls["forward"](), np.float32)


def of_torch(arrays, precision):
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), getattr(torch, precision)
    q, k, v = (torch.tensor(x, dtype=dtype, device=device).transpose(1, 2).requires_grad_() for x in arrays)
    attention = torch.nn.functional.scaled_dot_product_attention

    def forward():
        with torch.no_grad():
            out = attention(q, k, v)
        if cuda:
            torch.cuda.synchronize()
        return out

    def both():
        out = attention(q, k, v)
        torch.autograd.grad(out, (q, k, v), out.detach())
        if cuda:
            torch.cuda.synchronize()

    both()
    facts = {"device": torch.cuda.get_device_name() if cuda else "cpu", "version": torch.__version__}
    return {"forward": forward, "both": both}, facts, forward().transpose(1, 2).float().cpu().numpy()


CONTENDERS = {
    "library": functools.partial(of_jax, attend),
    "xla": functools.partial(of_jax, functools.partial(jax.nn.dot_product_attention, implementation="xla")),
    "cudnn": functools.partial(of_jax, functools.partial(jax.nn.dot_product_attention, implementation="cudnn")),
    "torch": of_torch,
}


def compare(contenders, arrays, precision, turns):
    """Contender → its line's fields."""
    found, calls, expected = {}, {}, None
    for name in contenders:
        try:
            calls[name], found[name], out = CONTENDERS[name](arrays, precision)
        except Exception as error:  # every platform refuses in a type of its own
            found[name] = {"unavailable": str(error).strip().splitlines()[0][:200]}
            continue
        expected = out if expected is None else expected
        found[name] |= {"gap": float(np.abs(out - expected).max()), "forward": np.inf, "both": np.inf}
    for _ in range(turns):
        for name, own in calls.items():
            for kind, call in own.items():
                start = time.perf_counter()
                call()
                found[name][kind] = min(found[name][kind], 1e3 * (time.perf_counter() - start))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=[129, 197, 257])
    parser.add_argument("--heads", nargs="+", type=int, default=[12, 16])
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=expand, help="file that lines are added to")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for precision in args.precisions:
        for tokens in args.tokens:
            for heads in args.heads:
                arrays = [rng.normal(size=(args.frames, tokens, heads, CHANNELS)).astype(np.float32) for _ in range(3)]
                for name, fields in compare(args.contenders, arrays, precision, args.turns).items():
                    row = {"contender": name, "tokens": tokens, "heads": heads, "frames": args.frames}
                    row |= {"precision": precision, **fields, "load": os.getloadavg()[0]}
                    line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
                    print(line, flush=True)
                    if args.out:
                        with open(args.out, "a", encoding="utf-8") as file:
                            file.write(line + "\n")


if __name__ == "__main__":
    main()
