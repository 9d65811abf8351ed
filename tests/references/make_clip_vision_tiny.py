"""Makes clip_vision_tiny.npz: weights, input and outputs of a tiny CLIP image tower of Hugging Face transformers.

    python tests/references/make_clip_vision_tiny.py

Needs torch and transformers. Weights are random, rounded to float16 (and used so) to keep the file small.
`native/…` are the outputs at 32×32 pixels, `wide/…` those at 32×16 with bilinearly resized positions.
"""

import pathlib

import numpy as np
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

CONFIG = dict(
    hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    image_size=32, patch_size=8, projection_dim=16, hidden_act="quick_gelu", layer_norm_eps=1e-5,
)  # fmt: skip


@torch.no_grad()
def make() -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG)).eval()
    for name, parameter in model.named_parameters():
        # Every parameter is random: with biases of 0 and scales of 1 as at initialization, mix-ups would not show.
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
        noise = torch.randn(parameter.shape, generator=generator) * (1.0 if "position" in name else fan_in**-0.5)
        scale = name.endswith("weight") and parameter.ndim == 1
        parameter.copy_((noise + scale).half().float())
    arrays = {f"weights/{key}": value.half().numpy() for key, value in model.state_dict().items()}

    pixels = torch.randn(2, 3, 32, 32, generator=generator).half().float()
    arrays["frames"] = pixels.permute(0, 2, 3, 1).half().numpy()
    arrays |= {f"native/{name}": array for name, array in outputs(model, pixels).items()}

    embeddings = model.vision_model.embeddings
    table = embeddings.position_embedding.weight
    patches = table[1:].T.reshape(1, -1, 4, 4)
    patches = torch.nn.functional.interpolate(patches, (4, 2), mode="bilinear", align_corners=False)
    resized = torch.cat([table[:1], patches[0].flatten(1).T])
    embeddings.interpolate_pos_encoding = lambda *_: resized[None]
    wide = outputs(model, pixels[..., :16], interpolate_pos_encoding=True)
    return arrays | {f"wide/{name}": array for name, array in wide.items()}


def outputs(model, pixels: torch.Tensor, **options) -> dict[str, np.ndarray]:
    result = model(pixels, **options)
    tokens = model.vision_model.post_layernorm(result.last_hidden_state)  # the model itself norms one token only
    return {"tokens": tokens.numpy(), "projected": result.image_embeds.numpy()}


if __name__ == "__main__":
    file = pathlib.Path(__file__).with_name("clip_vision_tiny.npz")
    np.savez_compressed(file, **make())
    print(f"{file}: {file.stat().st_size:,} bytes")
