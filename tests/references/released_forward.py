"""What the released codes of the CLIP-ReID family and VLD compute in evaluation, from their tensors, in float64.

Restated from the papers and from the order of operations of the codes; nothing of the library is used.
"""

import numpy as np


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


class Net:
    """The tensors of a file, with the layers that use them by the name of a layer."""

    def __init__(self, tensors):
        self.t = {name: np.asarray(value, np.float64) for name, value in tensors.items()}

    def __contains__(self, name):
        return name in self.t

    def linear(self, name, x):
        return x @ self.t[f"{name}.weight"].T + self.t.get(f"{name}.bias", 0.0)

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def batch_norm(self, name, x):
        scaled = (x - self.t[f"{name}.running_mean"]) / np.sqrt(self.t[f"{name}.running_var"] + 1e-5)
        return scaled * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def attend(self, q, k, v, heads, causal=False):
        """[N, L, D], [N, M, D], [N, M, D] → [N, L, D]."""

        def split(x):
            return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

        q, k, v = split(q), split(k), split(v)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        if causal:
            scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
        out = (softmax(scores) @ v).swapaxes(1, 2)
        return out.reshape(*out.shape[:2], -1)

    def attention(self, name, q, kv, heads, causal=False):
        """torch.nn.MultiheadAttention."""
        wq, wk, wv = np.split(self.t[f"{name}.in_proj_weight"], 3)
        bq, bk, bv = np.split(self.t[f"{name}.in_proj_bias"], 3)
        return self.linear(
            f"{name}.out_proj", self.attend(q @ wq.T + bq, kv @ wk.T + bk, kv @ wv.T + bv, heads, causal)
        )

    def mlp(self, name, x):
        return self.linear(f"{name}.c_proj", quick_gelu(self.linear(f"{name}.c_fc", x)))

    # --- CLIP --------------------------------------------------------------------------------------------------------

    def block(self, name, x, heads, causal=False, frames=0, prompt=None):
        """With VSLA-CLIP's adapters where there are some, over clips of `frames`, and a prompt [N, 1, D] behind the
        tokens of the attention."""
        n = self.norm(f"{name}.ln_1", x)
        seen = n if prompt is None else np.concatenate([n, prompt], axis=1)
        added = self.attention(f"{name}.attn", seen, seen, heads, causal)[:, : x.shape[1]]
        if f"{name}.dat_cross.down.weight" in self:
            low = self.linear(f"{name}.dat_cross.down", x)  # [B·T, L, d]
            clips = low.reshape(-1, frames, *low.shape[1:]).swapaxes(1, 2)  # [B, L, T, d]
            rows = clips.reshape(-1, frames, low.shape[-1])
            at = f"{name}.dat_cross.temporal_block.temporal_attn"
            mixed = self.attention(at, rows, rows, 4).reshape(clips.shape).swapaxes(1, 2).reshape(low.shape)
            added = added + self.linear(f"{name}.dat_cross.up", mixed)
        x = x + added
        after = self.mlp(f"{name}.mlp", self.norm(f"{name}.ln_2", x))
        if f"{name}.dat.down.weight" in self:
            after = after + self.linear(f"{name}.dat.up", quick_gelu(self.linear(f"{name}.dat.down", x)))
        return x + after

    def depth(self, name):
        return len({key.removeprefix(f"{name}.resblocks.").split(".")[0] for key in self.t if key.startswith(name)})

    def image(self, clips, heads, side=None, prompts=None):
        """Frames [B, T, H, W, 3] → (tokens after the last norm [B·T, L, D], the same in the joint space).

        side: added to the class token [B, D]; prompts: rows [blocks, 1, B, D] of the first blocks.
        """
        count, frames = clips.shape[:2]
        x = clips.reshape(count * frames, *clips.shape[2:]).astype(np.float64)
        kernel = self.t["image_encoder.conv1.weight"]
        p = kernel.shape[-1]
        patches = x.reshape(len(x), x.shape[1] // p, p, x.shape[2] // p, p, 3)
        x = np.einsum("nhiwjc,dcij->nhwd", patches, kernel).reshape(len(x), -1, kernel.shape[0])
        cls = np.broadcast_to(self.t["image_encoder.class_embedding"], (len(x), 1, x.shape[-1]))
        if side is not None:
            cls = cls + np.repeat(side, frames, axis=0)[:, None]
        x = np.concatenate([cls, x], axis=1) + self.t["image_encoder.positional_embedding"]
        x = self.norm("image_encoder.ln_pre", x)
        for i in range(self.depth("image_encoder.transformer")):
            deep = prompts is not None and i < len(prompts)
            prompt = np.repeat(prompts[i].swapaxes(0, 1), frames, axis=0) if deep else None
            x = self.block(f"image_encoder.transformer.resblocks.{i}", x, heads, frames=frames, prompt=prompt)
        x = self.norm("image_encoder.ln_post", x)
        return x, x @ self.t["image_encoder.proj"]

    def sentences(self, heads, end):
        """The sentence of every identity in the joint space [C, E]; `end`: the place of the end token."""
        own = self.t["prompt_learner.cls_ctx"]

        def everywhere(name):
            key = f"prompt_learner.{name}"
            return [np.broadcast_to(self.t[key], (len(own), *self.t[key].shape[1:]))] if key in self else []

        parts = [*everywhere("token_prefix"), *everywhere("prefix_prompt"), own, *everywhere("suffix_prompt")]
        x = np.concatenate([*parts, *everywhere("token_suffix")], axis=1)
        assert x.shape[1] == 77
        x = x + self.t["text_encoder.positional_embedding"]
        for i in range(self.depth("text_encoder.transformer")):
            x = self.block(f"text_encoder.transformer.resblocks.{i}", x, heads, causal=True)
        return self.norm("text_encoder.ln_final", x)[:, end] @ self.t["text_encoder.text_projection"]

    # --- TF-CLIP -----------------------------------------------------------------------------------------------------

    def diffusion(self, tokens, frames, heads, name="TMD"):
        """Tokens [B·T, L, D] → frame features [B·T, D]."""
        at = f"{name}.resblocks.0"
        s = self.linear(f"{at}.message_fc", tokens.mean(1)).reshape(-1, frames, tokens.shape[-1])
        n = self.norm(f"{at}.message_ln", s)
        s = s + self.attention(f"{at}.message_attn", n, n, heads)
        z = np.concatenate([tokens, s.reshape(-1, 1, tokens.shape[-1])], axis=1)
        return self.block(at, z, heads).mean(1)

    def plain_attention(self, name, q, kv, heads):
        q, k, v = (self.linear(f"{name}.{part}_proj", x) for part, x in (("q", q), ("k", kv), ("v", kv)))
        return self.linear(f"{name}.proj", self.attend(q, k, v, heads))

    def prompt(self, bank, tokens, heads, name="SSP"):
        """Bank [C, E] and a clip's tokens [B, L, E] → what is added to the bank [B, C, E]."""
        x = np.broadcast_to(bank, (len(tokens), *bank.shape))
        full = f"{name}.memory_proj.0.weight" in self
        if full:
            tokens = self.linear(f"{name}.memory_proj.1", self.norm(f"{name}.memory_proj.0", tokens))
            tokens = self.norm(f"{name}.memory_proj.2", tokens)
            x = self.linear(f"{name}.text_proj.1", self.norm(f"{name}.text_proj.0", x))
        else:
            tokens = self.norm(f"{name}.norm", tokens)
        for i in range(2):
            at = f"{name}.decoder.{i}"
            n = self.norm(f"{at}.norm1", x)
            if full:
                x = x + self.plain_attention(f"{at}.self_attn", n, n, heads)
                n = self.norm(f"{at}.norm2", x)
            x = x + self.plain_attention(f"{at}.cross_attn", n, tokens, heads)
            x = x + self.linear(f"{at}.mlp.3", quick_gelu(self.linear(f"{at}.mlp.0", self.norm(f"{at}.norm3", x))))
        return self.linear(f"{name}.out_proj.1", self.norm(f"{name}.out_proj.0", x)) if full else x
