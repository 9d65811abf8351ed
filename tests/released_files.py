"""Names and shapes of the tensors that authors released for the CLIP-ReID family and for VLD, as their model classes
make them; and files of random numbers that have them.

The number of identities is 5. Names are written once for all blocks; TF-CLIP's older files are those of the published
code without what the older one had not, under the names that its optimizer looks for.
"""

import re

import numpy as np
import safetensors.numpy

IDENTITIES = 5


def attention(key, width):
    return {
        f"{key}.in_proj_weight": (3 * width, width),
        f"{key}.in_proj_bias": (3 * width,),
        f"{key}.out_proj.weight": (width, width),
        f"{key}.out_proj.bias": (width,),
    }


def linear(key, inputs, outputs):
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def norm(key, width):
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def batch_norm(key, width):
    running = {f"{key}.running_mean": (width,), f"{key}.running_var": (width,), f"{key}.num_batches_tracked": ()}
    return norm(key, width) | running


def transformer(key, width, depth=12):
    found = {}
    for i in range(depth):
        at = f"{key}.resblocks.{i}"
        found |= attention(f"{at}.attn", width) | norm(f"{at}.ln_1", width) | norm(f"{at}.ln_2", width)
        found |= linear(f"{at}.mlp.c_fc", width, 4 * width) | linear(f"{at}.mlp.c_proj", 4 * width, width)
    return found


def image_encoder(patches=128):
    key = "image_encoder"
    return {
        f"{key}.class_embedding": (768,),
        f"{key}.positional_embedding": (1 + patches, 768),
        f"{key}.proj": (768, 512),
        f"{key}.conv1.weight": (768, 3, 16, 16),
        **norm(f"{key}.ln_pre", 768),
        **transformer(f"{key}.transformer", 768),
        **norm(f"{key}.ln_post", 768),
    }


def text_encoder():
    return {
        "text_encoder.positional_embedding": (77, 512),
        "text_encoder.text_projection": (512, 512),
        **transformer("text_encoder.transformer", 512),
        **norm("text_encoder.ln_final", 512),
    }


def words(before, after, shared=0):
    return {
        "prompt_learner.cls_ctx": (IDENTITIES, 4, 512),
        "prompt_learner.token_prefix": (1, before, 512),
        "prompt_learner.token_suffix": (1, after, 512),
        **({f"prompt_learner.{side}_prompt": (1, shared, 512) for side in ("prefix", "suffix")} if shared else {}),
    }


def necks():
    return {
        "classifier.weight": (IDENTITIES, 768),
        "classifier_proj.weight": (IDENTITIES, 512),
        **batch_norm("bottleneck", 768),
        **batch_norm("bottleneck_proj", 512),
    }


def clip_reid():
    return {"cv_embed": (3, 768), **necks(), **image_encoder(), **words(5, 68), **text_encoder()}


def vsla_clip():
    found = necks() | image_encoder() | words(1, 56, shared=8) | text_encoder()
    for i in range(12):
        at = f"image_encoder.transformer.resblocks.{i}"
        for adapter in ("dat", "dat_cross"):
            found |= linear(f"{at}.{adapter}.down", 768, 256) | linear(f"{at}.{adapter}.up", 256, 768)
        found |= attention(f"{at}.dat_cross.temporal_block.temporal_attn", 256)
    return found


def vsla_clip_platform_prompts():
    return {"cv_embed": (9, 1, 2, 768), **vsla_clip()}


def clip_xfd():
    """ViT-B/16, four tokens of each of three cameras, the scores of two poolings."""
    scores = linear("temporal_attn.fc", 768, 1) | linear("temporal_attn_proj.fc", 512, 1)
    return {**vsla_clip(), "cv_embed": (9, 4, 3, 768), **scores}


def tf_clip():
    found = {"cv_embed": (6, 768), "classifier2.weight": (IDENTITIES, 768), "classifier_proj.weight": (IDENTITIES, 512)}
    found |= {f"classifier_proj_{name}.weight": (IDENTITIES, 768) for name in ("temp", "temp2")}
    found |= batch_norm("bottleneck", 768) | batch_norm("bottleneck_proj", 512)
    found |= batch_norm("bottleneck_proj_temp", 768) | batch_norm("bottleneck_proj_temp2", 768)
    found |= image_encoder() | {"SSP.alpha": (512,)} | norm("SSP.norm", 512)
    found |= norm("SSP.memory_proj.0", 512) | linear("SSP.memory_proj.1", 512, 512) | norm("SSP.memory_proj.2", 512)
    for name in ("text_proj", "out_proj"):
        found |= norm(f"SSP.{name}.0", 512) | linear(f"SSP.{name}.1", 512, 512)
    for i in range(2):
        at = f"SSP.decoder.{i}"
        for kind in ("self_attn", "cross_attn"):
            found |= {f"{at}.{kind}.{name}_proj.weight": (512, 512) for name in "qkv"}
            found |= linear(f"{at}.{kind}.proj", 512, 512)
        for number in (1, 2, 3):
            found |= norm(f"{at}.norm{number}", 512)
        found |= linear(f"{at}.mlp.0", 512, 2048) | linear(f"{at}.mlp.3", 2048, 512)
    at = "TMD.resblocks.0"
    found |= linear(f"{at}.message_fc", 768, 768) | norm(f"{at}.message_ln", 768)
    return found | attention(f"{at}.message_attn", 768) | transformer("TMD", 768, depth=1)


def tf_clip_older():
    absent = r"SSP\.(alpha|(memory|text|out)_proj\..*|decoder\.\d\.(self_attn|norm2)\..*)"
    kept = {name: shape for name, shape in tf_clip().items() if not re.fullmatch(absent, name)}
    return {re.sub("^TMD", "SAT", re.sub("^SSP", "prompts_generator", name)): shape for name, shape in kept.items()}


def vld():
    found = {"logit_scale": (), "prompt_embedding": (6, 6, 768), **image_encoder(162)}
    for name, width in (("", 768), ("_proj", 512), ("_STP", 768), ("_proj_STP", 512)):
        found |= batch_norm(f"classifier{name}.BN", width)
        found |= {f"classifier{name}.classifier.weight": (IDENTITIES, width)}
    return found | text_encoder() | words(2, 71) | attention("attn", 768) | norm("ln_post2", 768)


def gru(key, inputs, hidden):
    found = {}
    for layer, width in enumerate((inputs, hidden)):
        found |= {f"{key}.weight_ih_l{layer}": (3 * hidden, width), f"{key}.weight_hh_l{layer}": (3 * hidden, hidden)}
        found |= {f"{key}.bias_{name}_l{layer}": (3 * hidden,) for name in ("ih", "hh")}
    return found


def mamba_layer(key, width, state=16, expand=2, mlp_ratio=4):
    at, inner, rank = f"{key}.mamba", expand * width, -(-width // 16)
    found = {f"{at}.in_proj.weight": (2 * inner, width), f"{at}.out_proj.weight": (width, inner)}
    for scan in ("", "_b", "_s"):
        found |= {f"{at}.A{scan}_log": (inner, state), f"{at}.D{scan}": (inner,)}
        found |= {f"{at}.conv1d{scan}.weight": (inner, 1, 4), f"{at}.conv1d{scan}.bias": (inner,)}
        found |= {f"{at}.x_proj{scan}.weight": (rank + 2 * state, inner)}
        found |= linear(f"{at}.dt_proj{scan}", rank, inner)
    for name in ("norm1", "norm2", "ln_2"):
        found |= norm(f"{key}.{name}", width)
    hidden = mlp_ratio * width
    return found | linear(f"{key}.mlp.fc1", width, hidden) | linear(f"{key}.mlp.fc2", hidden, width)


def sas_vpreid(width=768, joint=512, wide=2048, hidden=1024, depth=4, frames=8, **mamba):
    """All but the image tower."""
    found = {"cv_embed": (6, width), "alpha": (3,)}
    classifiers = {"": width + joint, "2": width, "_proj": joint, "_proj_temp": width, "_proj_temp2": width}
    found |= {
        f"classifier{name}.weight": (IDENTITIES, size) for name, size in (classifiers | {"_proj_tsm": 10}).items()
    }
    necks = {"": width, "_proj": joint, "_proj_temp": width, "_proj_temp2": width, "_proj_tsm": 10}
    for name, size in necks.items():
        found |= batch_norm(f"bottleneck{name}", size)
    for key in ("TMD_mamba", "Her_t_mamba1", "Her_t_mamba2"):
        found |= mamba_layer(key, width, **mamba)
    found |= norm("norm3_mamba", width) | norm("norm4_mamba", width)
    found |= {"pro_tsm.weight": (wide, width), **gru("tsm.encoder.gru", wide, hidden)}
    found |= linear("tsm.encoder.linear", hidden, wide)
    at = "tsm.regressor"
    found |= {f"{at}.init_{name}": (1, size) for name, size in (("pose", 144), ("shape", 10), ("cam", 3))}
    found |= linear(f"{at}.fc1", wide + 157, hidden) | linear(f"{at}.fc2", hidden, hidden)
    for name, size in (("pose", 144), ("shape", 10), ("cam", 3)):
        found |= linear(f"{at}.dec{name}", hidden, size)
    found |= linear("shape_agg.layer1", hidden, 10) | gru("shape_agg.gru", 10, hidden)
    for i in range(depth):
        at = f"shape_agg.attention.layers.{i}"
        found |= attention(f"{at}.self_attn", hidden) | norm(f"{at}.norm1", hidden) | norm(f"{at}.norm2", hidden)
        found |= linear(f"{at}.ffn.0", hidden, 4 * hidden) | linear(f"{at}.ffn.3", 4 * hidden, hidden)
    found |= linear("shape_agg.fc", hidden, 10)
    for place in range(frames):
        found |= linear(f"shape_classifiers.{place}.classifier", 10, IDENTITIES)
    return found


FILES = (clip_reid, tf_clip, tf_clip_older, vsla_clip, vsla_clip_platform_prompts, clip_xfd, vld)

# A tower of 24 channels and 2 blocks beside a text tower of 16, frames of 64 × 32.
SMALLER = {768: 24, 512: 16, 256: 8, 2304: 72, 1536: 48, 3072: 96, 2048: 64, 129: 9, 163: 9, 9: 2}


def smaller(shapes):
    """The same tensors of small towers; the blocks beyond the second are left out."""
    deep = re.compile(r"encoder\.transformer\.resblocks\.([2-9]|1\d)\.")
    return {
        name: tuple(SMALLER.get(length, length) for length in shape)
        for name, shape in shapes.items()
        if not deep.search(name)
    }


def random_tensors(shapes, seed=0):
    """Numbers of about the size that trained tensors have; what is fixed in training is as it was fixed."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        wide = max(1, int(np.prod(shape[1:])))
        value = rng.normal(size=shape) / wide**0.5
        if name.endswith("running_var"):
            value = 0.5 + np.abs(value)
        elif re.search(r"(^|\.)(norm\d?|ln_\w+|BN|bottleneck\w*|message_ln|\w+_proj\.[02])\.weight$", name):
            value = 1 + 0.2 * value
        elif re.search(r"^bottleneck\w*\.bias$", name):
            value = np.zeros(shape)
        elif name == "prompt_learner.token_prefix" and shape[1] == 5:  # "A photo of a", behind the start token
            value[0, 4] = value[0, 1]
        dtype = np.int64 if name.endswith("num_batches_tracked") else np.float32
        found[name] = np.asarray(value, dtype)
    return found


def random_file(path, shapes, seed=0):
    """Writes a safetensors file; returns its tensors."""
    tensors = random_tensors(shapes, seed)
    safetensors.numpy.save_file(tensors, path)
    return tensors


def timm_block(key, width):
    return {
        **norm(f"{key}.norm1", width),
        **linear(f"{key}.attn.qkv", width, 3 * width),
        **linear(f"{key}.attn.proj", width, width),
        **norm(f"{key}.norm2", width),
        **linear(f"{key}.mlp.fc1", width, 4 * width),
        **linear(f"{key}.mlp.fc2", 4 * width, width),
    }


def keyre_id(width=768, depth=12, patch=16, patches=128, frames=4, cameras=6):
    """`block1` is also called `b2.0`."""
    wide = frames * width
    found = {
        "base.cls_token": (1, 1, width),
        "base.pos_embed": (1, 1 + patches, width),
        "base.Cam": (cameras, 1, width),
        "base.patch_embed.proj.weight": (width, 3, patch, patch),
        "base.patch_embed.proj.bias": (width,),
        **norm("base.norm", width),
        **linear("base.fc", width, 1000),
        **timm_block("b1.0", width),
        **norm("b1.1", width),
        **timm_block("block1", wide),
        **timm_block("b2.0", wide),
        **norm("b2.1", wide),
        **batch_norm("bottleneck", width),
        "classifier.weight": (IDENTITIES, width),
        "attention_conv.weight": (width // 3, width, 1, 1),
        "attention_conv.bias": (width // 3,),
        "attention_tconv.weight": (1, width // 3, 3),
        "attention_tconv.bias": (1,),
    }
    for i in range(depth):
        found |= timm_block(f"base.blocks.{i}", width)
    for k in range(1, 7):
        found |= batch_norm(f"bottleneck_{k}", wide) | {f"classifier_{k}.weight": (IDENTITIES, wide)}
    return found


def plain_batch_norm(key, width):
    """Running statistics alone."""
    return {name: shape for name, shape in batch_norm(key, width).items() if ".running_" in name or "num_" in name}


def resnet_trunk(key, width, depths):
    """Bottlenecks in torchvision's names, counted from 0."""
    found, inputs = {}, width
    for i, depth in enumerate(depths):
        inner = width * 2**i
        for j in range(depth):
            at = f"{key}.{i}.{j}"
            for number, shape in enumerate(
                [(inner, inputs, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)], start=1
            ):
                found |= {f"{at}.conv{number}.weight": shape} | batch_norm(f"{at}.bn{number}", shape[0])
            if not j:
                found[f"{at}.downsample.0.weight"] = (4 * inner, inputs, 1, 1)
                found |= batch_norm(f"{at}.downsample.1", 4 * inner)
            inputs = 4 * inner
    return found


def dinogrl(
    dino=384, depth=12, patch=14, table=1370, width=64, depths=(3, 4, 6, 3), channels=16, parts=31, more=4, part=256,
    classes=500,
):  # fmt: skip
    """The tensors of three files: the appearance model, PBMGE, the gait model."""
    last = 4 * width * 2 ** (len(depths) - 1)

    def heads(key):
        return {
            f"{key}FCs.fc_bin": (parts, last, part),
            f"{key}BNNecks.fc_bin": (parts + more, part, classes),
            **batch_norm(f"{key}BNNecks.bn1d", (parts + more) * part),
        }

    appearance = {}
    for number in (1, 2):
        at = f"image_encoder{number}.resnet_conv"
        appearance |= {f"{at}.0.weight": (width, 3, 7, 7)} | batch_norm(f"{at}.1", width)
    appearance |= resnet_trunk("share_encoder.resnet_conv", width, depths) | heads("")
    exchange = {}
    for stream in ("app", "shape"):
        at = f"enhance_{stream}_net_3"
        for name in ("g.0", "theta", "phi"):
            exchange |= {f"{at}.{name}.weight": (part, 1, 1), f"{at}.{name}.bias": (part,)}
        for name in ("W1", "W2"):
            exchange |= {f"{at}.{name}.0.weight": (1, part, 1), f"{at}.{name}.0.bias": (1,)}
            exchange |= batch_norm(f"{at}.{name}.1", 1)
    tower = {
        "cls_token": (1, 1, dino),
        "pos_embed": (1, table, dino),
        "mask_token": (1, dino),
        "patch_embed.proj.weight": (dino, 3, patch, patch),
        "patch_embed.proj.bias": (dino,),
        **norm("norm", dino),
    }
    for i in range(depth):
        tower |= timm_block(f"blocks.{i}", dino)
        tower |= {f"blocks.{i}.ls{k}.gamma": (dino,) for k in (1, 2)}
    gait = {f"dinov2.dinov2.{name}": shape for name, shape in tower.items()}
    four = 4 * dino
    for name, source, target in (("Mask", dino, 2), ("Denoising", four, channels), ("Appearance", four, channels)):
        at = f"dinov2.{name}_Branch"
        gait |= plain_batch_norm(f"{at}.bn_s", source) | plain_batch_norm(f"{at}.bn_t", target)
        if name == "Denoising":
            gait |= linear(f"{at}.down_sampling.0", source, source // 2)
            gait |= plain_batch_norm(f"{at}.down_sampling.1", source // 2)
            gait |= linear(f"{at}.down_sampling.3", source // 2, target)
        else:
            gait |= linear(f"{at}.down_sampling", source, target)
    gait |= linear("dinov2.Mask_Branch.up_sampling", 2, dino)
    net = "dinov2.gait_net."
    for name in ("pre_part", "pre_rgb"):
        at = f"{net}{name}.forward_block"
        gait |= {f"{at}.conv1.conv.weight": (width, channels, 3, 3)} | batch_norm(f"{at}.bn1", width)
        for k in (1, 2):
            gait |= {f"{at}.layer1.0.conv{k}.weight": (width, width, 3, 3)} | batch_norm(f"{at}.layer1.0.bn{k}", width)
    at, squeezed = f"{net}fusion.conv.forward_block", max(width // 16, 4)
    gait |= {f"{at}.0.weight": (squeezed, 2 * width, 1, 1)} | batch_norm(f"{at}.1", squeezed)
    gait |= {f"{at}.3.weight": (squeezed, squeezed, 3, 3)} | batch_norm(f"{at}.4", squeezed)
    gait[f"{at}.6.weight"] = (2 * width, squeezed, 1, 1)
    gait |= resnet_trunk(f"{net}post_backbone.resnet_conv", width, depths) | heads(net)
    return appearance, exchange, gait


def hamobe(width=1024, tokens=257, frames=4, count=8, blocks=4):
    """The trained head; the tower is apart."""
    d, grid = width // 2, round((tokens - 1) ** 0.5)

    def two(key, *sizes):
        return linear(f"{key}.0", *sizes[:2]) | linear(f"{key}.2", *sizes[1:])

    def gate(key, before, after, inputs, outputs):
        projections = {f"{key}.attn.to_{name}.weight": (d, d) for name in ("q", "k", "v", "out")}
        found = linear(f"{key}.{before}.0", inputs, d) | linear(f"{key}.{after}", d, outputs)
        return found | {f"{key}.pos_embed.emb.weight": (tokens, d)} | projections

    found = linear("decoder.decoder_layers", blocks * width, width)
    for i in range(blocks):
        found |= {f"decoder.temporal_conv.{i}.weight": (width, 1, 3), f"decoder.temporal_conv.{i}.bias": (width,)}
        found |= {f"decoder.temporal_pos_embed.{i}": (frames, width)}
        found |= {f"decoder.cross_attention.{i}.{name}": ((2 * grid - 1) ** 2, width) for name in ("w1", "w2")}
    for k in range(count):
        found |= two(f"moe_first.experts.{k}", width, d, d)
    found |= gate("moe_first.gating", "fc_pre", "fc_post", width, 3 * count)
    for name in ("canonical", "appearance"):
        found |= two(f"moe_{name}.layer", d, d, d) | two(f"moe_{name}.patch_agg", tokens, d // 4, 1)
    at, inner = "moe_pose.pose_agg", 3 * d // 2
    found |= {"moe_pose.cls_token": (d,)} | two("moe_pose.layer", d, d, d)
    found |= {name: shape for each in "qkv" for name, shape in linear(f"{at}.attn.{each}_proj", d, inner).items()}
    found |= linear(f"{at}.attn.out_proj", inner, d) | linear(f"{at}.mlp.fc1", d, 4 * d)
    found |= linear(f"{at}.mlp.fc2", 4 * d, d)
    for i in (1, 2, 3):
        found |= norm(f"{at}.norm{i}", d)
    found |= gate("gating_second", "fc1_pre", "fc1_post", 3 * d, 3)
    found |= two("gating_second.patch_agg", tokens, d // 4, 1) | two("gating_second.fc2", frames, 4, 1)
    statistics = {name: shape for name, shape in batch_norm("bn", 4 * d).items() if "num_batches" not in name}
    return found | linear("fc", d, 4 * d) | statistics


def openai_clip(width, depth, patch, patches, joint=8):
    """OpenAI's file of a CLIP: its image tower, and a little of what else is in it."""
    return {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (1 + patches, width),
        "visual.proj": (width, joint),
        "visual.conv1.weight": (width, 3, patch, patch),
        **norm("visual.ln_pre", width),
        **transformer("visual.transformer", width, depth),
        **norm("visual.ln_post", width),
        **transformer("transformer", joint, 1),
        **norm("ln_final", joint),
        "token_embedding.weight": (9, joint),
        "positional_embedding": (7, joint),
        "text_projection": (joint, joint),
        "logit_scale": (),
    }
