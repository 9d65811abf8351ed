"""Where weights lie: the file or folder on this machine that a name stands for.

hf:ORG/REPO[@revision]   a repository of Hugging Face, fetched into its cache by `huggingface_hub` when needed
walkers_vit_tiny         a tower that comes with this package
openai/ViT-B-16, …       a published file (`PUBLISHED`) that was put into `weights_folder()`
anything else            a path
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxreid.backbones.tensors import FOLDER_CONFIGS, FOLDER_FILES, INDEX, CheckpointError
from jaxreid.errors import MissingFileError, UserError
from jaxreid.files import cache_folder, expand

log = logging.getLogger(__name__)

WITH_CAPTIONS = "The starting tower was trained on visible pictures of other drawn people with captions."
# Towers that come with the package, as backbones/weights/<name>.safetensors, and what results that start from them must
# say. The whole card lies beside each as <name>.md.
PACKAGED = {
    "walkers_vit_tiny": (
        "The starting tower was trained on visible pictures of other drawn people with captions; a second stage made "
        "it describe places too, which training here has to unlearn. Compare with the features before training: "
        "centring them is free."
    ),
    **dict.fromkeys(("walkers_dinov2_tiny", "walkers_imagenet_tiny", "walkers_resnet_tiny"), WITH_CAPTIONS),
}

HUB = "hf:"
BESIDE_WEIGHTS = (*FOLDER_CONFIGS, "vocab.json", "merges.txt", "tokenizer.json")  # the last three for the tokenizer
REACHABLE_WITHIN = 5.0  # seconds that the first answer may take


class Published(NamedTuple):
    """A file at its source, and the SHA-256 that the source publishes for it: whole, its first digits, or none."""

    url: str
    sha256: str = ""

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


def _openai(file: str, sha256: str) -> Published:
    return Published(f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}", sha256)


def _dinov2(size: str, registers: str) -> Published:
    name = f"dinov2_vit{size}14"
    return Published(f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}{registers}_pretrain.pth")


PUBLISHED = {
    "openai/ViT-B-32": _openai("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "openai/ViT-B-16": _openai("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "openai/ViT-L-14": _openai("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "openai/ViT-L-14-336px": _openai(
        "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
    ),
    **{f"dinov2/vit{size}14{registers}": _dinov2(size, registers) for size in "sblg" for registers in ("", "_reg4")},
    # PyTorch's hub and timm put the first eight digits of the SHA-256 into the name.
    "timm/jx_vit_base_p16_224": Published(
        "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx/"
        "jx_vit_base_p16_224-80ecf9dd.pth",
        "80ecf9dd",
    ),
    "torchvision/resnet50-v1": Published("https://download.pytorch.org/models/resnet50-0676ba61.pth", "0676ba61"),
    "torchvision/resnet50-v2": Published("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", "11ad3fa6"),
}


@contextlib.contextmanager
def located(name: str | os.PathLike) -> Iterator[Path]:
    """The file or folder that a name stands for, on this machine while the context lasts.

    A path that exists is that path. Raises FileNotFoundError that says what to put where, or CheckpointError on a
    file that is not what its source published.
    """
    text = os.fspath(name)
    if text.startswith(HUB):
        yield _fetched(text)
    elif text in PACKAGED:
        resource = importlib.resources.files("jaxreid.backbones") / "weights" / f"{text}.safetensors"
        with importlib.resources.as_file(resource) as path:
            if not path.exists():
                raise MissingFileError(f"the packaged tower {text} is not installed: {path} is missing")
            yield path
    elif (path := expand(text)).exists():
        yield path
    elif text in PUBLISHED:
        yield _put_there(text)
    else:
        raise MissingFileError(
            f"no weights at {text}, which is no known name either. Weights are a file or folder on this machine, "
            f"{HUB}ORG/REPO, or one of {', '.join((*PACKAGED, *PUBLISHED))}"
        )


def card(name: str | os.PathLike) -> str:
    """What results that start from these weights must say about them; "" where nothing is known."""
    return PACKAGED.get(os.fspath(name), "")


# ---------------------------------------------------------------------------------------------- published files


def weights_folder() -> Path:
    """Where published files are looked for: $XDG_CACHE_HOME/jaxreid/weights, ~/.cache/jaxreid/weights by default."""
    return cache_folder() / "jaxreid" / "weights"


def _put_there(name: str) -> Path:
    published = PUBLISHED[name]
    path = weights_folder() / published.file
    if not path.exists():
        begins = "is" if len(published.sha256) == 64 else "begins with"
        digest = f", whose SHA-256 {begins} {published.sha256}," if published.sha256 else ""
        raise MissingFileError(f"the weights {name} are not on this machine: fetch {published.url}{digest} to {path}")
    check_sha256(path, published.sha256, published.url)
    return path


def check_sha256(file: Path, expected: str, source: str) -> None:
    """Raises CheckpointError where the file's SHA-256 does not begin with the expected digits."""
    if not expected:
        return
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(expected):
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) has the SHA-256 {found}, but {source} is published with "
            f"{expected}: it is cut off or another file; fetch it again"
        )


# ------------------------------------------------------------------------------------------------- Hugging Face


def _fetched(name: str) -> Path:
    """The folder in Hugging Face's cache with weights, configs and vocabulary of `hf:ORG/REPO[@revision]`."""
    from huggingface_hub import constants, errors

    match = re.fullmatch(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", name)
    if match is None:
        raise UserError(f"{name!r} is not of the form hf:ORG/REPO or hf:ORG/REPO@revision")
    repo, revision = match["repo"], match["revision"]
    url = f"{constants.ENDPOINT}/{repo}"
    try:
        folder = _download(repo, revision)
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{url} is gated: accept its terms there, then log in on this machine (hf auth login) or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingFileError(f"{url} has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFileError(
            f"there is no repository {url}, or it is private: check the name, or log in (hf auth login)"
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # each major version of huggingface_hub has the errors of another HTTP library
        cached = _cached(repo, revision)
        if cached is None:
            raise MissingFileError(_how_to_get(repo, revision, error)) from error
        log.info("%s is out of reach (%s: %s); taking the copy in %s", url, type(error).__name__, error, cached)
        return cached
    if folder is None:
        raise MissingFileError(f"{url} holds none of {', '.join(FOLDER_FILES)}")
    return folder


def _download(repo: str, revision: str | None) -> Path | None:
    """Fetches what is not in the cache already; None where the repository has no weights that are read here."""
    from huggingface_hub import HfApi, snapshot_download

    # Tried once, unlike what follows: this is where a missing network shows.
    listed = HfApi().model_info(repo, revision=revision, timeout=REACHABLE_WITHIN).siblings or ()
    names = {file.rfilename for file in listed}
    weights = next((file for file in FOLDER_FILES if file in names), None)
    if weights is None:
        return None
    stem, suffix = os.path.splitext(weights.removesuffix(INDEX))
    wanted = [weights, *BESIDE_WEIGHTS, *([f"{stem}-*{suffix}"] if weights.endswith(INDEX) else [])]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder of an earlier download, if it holds weights."""
    import huggingface_hub

    for file in FOLDER_FILES:
        path = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _how_to_get(repo: str, revision: str | None, error: Exception) -> str:
    folder = repo.rpartition("/")[2]
    version = f" --revision {revision}" if revision else ""
    return (
        f"{HUB}{repo} can't be fetched ({error}) and is not in this machine's cache. Where there is a network, run\n"
        f"    hf download {repo}{version} --local-dir {folder}\n"
        "(from pip install huggingface_hub), copy that folder here (config.json and model.safetensors or "
        "pytorch_model.bin are enough; of an OpenCLIP repository, open_clip_*), and give\n"
        f"    --config.backbone.checkpoint=/path/to/{folder}"
    )
