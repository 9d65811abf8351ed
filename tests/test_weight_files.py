"""Files of weights: PyTorch's own formats read as PyTorch reads them and never run, names looked up, errors named."""

import collections
import functools
import hashlib
import http.server
import importlib.resources
import io
import json
import os
import pickle
import threading
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from messages import refuses

from jaxreid.backbones import hub
from jaxreid.backbones.hub import PUBLISHED, located
from jaxreid.backbones.tensors import CheckpointError, read_tensors

# ------------------------------------------------------------------------------------------- PyTorch's own files


def torch_state_dict():
    import torch

    torch.manual_seed(0)
    whole = torch.randn(6, 8)
    return {
        "whole": whole,
        "half.weight": torch.randn(3).half(),
        "brain.weight": torch.randn(2, 5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "slice": whole[1:4, 2:6],
        "transposed": whole.T,
        "steps": whole[::2, ::3],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "count": torch.tensor(5),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.zeros(0, 3),
    }


def assert_equal_to_torch(found, state_dict):
    assert found.keys() == state_dict.keys()
    for key, tensor in state_dict.items():
        assert found[key].shape == tuple(tensor.shape), key
        assert str(found[key].dtype) == str(tensor.dtype).removeprefix("torch."), key
        np.testing.assert_array_equal(found[key].astype(np.float64), tensor.detach().double().numpy())


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
def test_torch_files_equal_torch(tmp_path, zipped, wrap):
    import torch

    state_dict = torch_state_dict()
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}}
    content = {"epoch": 3, wrap: state_dict, "optimizer": optimizer} if wrap else state_dict
    path = tmp_path / "model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_equal_to_torch(read_tensors(path), state_dict)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_modules_state_dict_with_batch_statistics(tmp_path, zipped):
    import torch

    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, bias=False), torch.nn.BatchNorm2d(4))
    path = tmp_path / "pytorch_model.bin"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=zipped)  # an OrderedDict with _metadata
    assert_equal_to_torch(read_tensors(tmp_path), module.state_dict())


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_archives(tmp_path, how):
    """The form of OpenAI's files: mixed precision, scalars beside the weights."""
    import torch

    class Visual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.class_embedding = torch.nn.Parameter(torch.randn(4).half())
            self.conv1 = torch.nn.Conv2d(3, 4, 2, bias=False)
            self.attn_mask = torch.zeros(2, 2)  # an attribute that is no buffer

        def forward(self, x):
            return self.conv1(x).mean((2, 3)) + self.class_embedding

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = Visual()
            self.ln_final = torch.nn.LayerNorm(4)
            self.register_buffer("input_resolution", torch.tensor(224))
            self.context_length = 77

        def forward(self, x):
            return self.ln_final(self.visual(x)) * self.input_resolution

    module = Clip().eval()
    scripted = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.randn(1, 3, 4, 4))
    scripted.save(str(tmp_path / "ViT.pt"))
    found = read_tensors(tmp_path / "ViT.pt")
    assert found.keys() - scripted.state_dict().keys() <= {"visual.attn_mask"}
    assert_equal_to_torch({key: found[key] for key in scripted.state_dict()}, scripted.state_dict())


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def call(module, name, argument):
    """A pickle that calls any name of any module; dots in the name are attributes of attributes."""
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name, argument)]
    return b"\x80\x04" + texts[0] + texts[1] + b"\x93" + texts[2] + b"\x85R."


def malicious(marker):
    """Pickles by the name that they call; most would make a file `marker`."""
    opens = f"open({str(marker)!r}, 'w')"
    return {
        "posix.system": pickle.dumps({"a": Call(os.system, f"touch {marker}")}),
        "builtins.eval": pickle.dumps(Call(eval, opens)),
        "builtins.exec": pickle.dumps({"state_dict": collections.OrderedDict(a=Call(exec, opens))}),
        "builtins.getattr": pickle.dumps(Call(getattr, [], "append")),
        "torch._utils.torch.os.system": call("torch._utils", "torch.os.system", f"touch {marker}"),
        "collections.OrderedDict.fromkeys": call("collections", "OrderedDict.fromkeys", "a"),
        "torch.FloatStorage.from_file": call("torch", "FloatStorage.from_file", str(marker)),
        "torch.hub.load": call("torch.hub", "load", "a"),
        "torch.nn.modules.linear.Linear": call("torch.nn.modules.linear", "Linear", "a"),
        "numpy.core.multiarray._reconstruct": call("numpy.core.multiarray", "_reconstruct", "a"),
        "__torch__os.system": call("__torch__os", "system", "a"),
    }


def legacy_file(content):
    sizes = {"protocol_version": 1001, "little_endian": True}
    header = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, sizes)]
    return b"".join(header) + content + pickle.dumps([], 2)


def zip_file(content, data=bytes(16), root="archive"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{root}/data.pkl", content)
        archive.writestr(f"{root}/data/0", data)
    return stream.getvalue()


@pytest.mark.parametrize("wrap", [zip_file, legacy_file, lambda content: content], ids=["zip", "legacy", "bare"])
def test_nothing_in_a_file_is_run(tmp_path, wrap):
    marker = tmp_path / "marker"
    for name, content in malicious(marker).items():
        path = tmp_path / "pytorch_model.bin"
        path.write_bytes(wrap(content))
        with refuses(CheckpointError, path, name):
            read_tensors(tmp_path)
        assert not marker.exists(), name


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "builtins.exec",
        pytest.param("torch._utils.torch.os.system", marks=pytest.mark.parity),
    ],
)
def test_the_same_pickles_run_elsewhere(tmp_path, name):
    """The test above tests something: Python's own unpickler does what these say."""
    marker = tmp_path / "marker"
    pickle.loads(malicious(marker)[name])
    assert marker.exists()


def tensor_pickle(offset=0, shape=(2, 2), strides=(2, 1), count=4, key="0"):
    """A state dict of one float32 tensor as torch.save would pickle it, with any numbers."""

    def number(values):
        return pickle.dumps(values, 2)[2:-1]

    storage = b"(" + b"X\x07\0\0\0storagectorch\nFloatStorage\n" + number(key) + number("cpu") + number(count) + b"tQ"
    arguments = storage + number(offset) + number(shape) + number(strides) + b"\x89" + b"N"
    return b"\x80\x02}" + number("a") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tRs."


def test_tensors_that_reach_outside_their_storage_are_named(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(zip_file(tensor_pickle()))
    np.testing.assert_array_equal(read_tensors(path)["a"], np.zeros((2, 2), np.float32))
    for wrong in (
        dict(offset=1),
        dict(offset=-1),
        dict(strides=(3, 1)),
        dict(strides=(-1, 1)),
        dict(strides=(1,)),
        dict(shape=(5,), strides=(1,)),
        dict(shape=("a", 2)),
        dict(shape=(2.0, 2)),
        dict(count=5),
        dict(count=-4),
        dict(key="1"),
        dict(key="../data.pkl"),
        dict(key=0),
    ):
        path.write_bytes(zip_file(tensor_pickle(**wrong)))
        with refuses(CheckpointError, path, f"{path.stat().st_size:,}"):
            read_tensors(path)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_torch_files_are_named(tmp_path, zipped):
    import torch

    path = tmp_path / "model.pth"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(3, 3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    flipped = bytearray(whole)
    flipped[whole.index(np.float32(50).tobytes())] ^= 1
    # The last bytes of a zip archive are its directory; the old form has no checksum that could see a flipped bit.
    damaged = [
        whole[:10],
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-1],
        b"",
        pointer,
        *([bytes(flipped)] if zipped else []),
    ]
    for content in damaged:
        path.write_bytes(content)
        with refuses(CheckpointError, path, f"{len(content):,} bytes", "PyTorch", "cut off"):
            read_tensors(path)


@pytest.mark.parity
def test_torch_files_that_hold_no_state_dict_are_named(tmp_path):
    import torch

    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with refuses(CheckpointError, "list.pt", "list", "state dict"):
        read_tensors(tmp_path / "list.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with refuses(CheckpointError, "module.pt", "torch.nn.modules.linear.Linear", "save_file(model.state_dict"):
        read_tensors(tmp_path / "module.pt")


def test_files_that_hold_no_state_dict_are_named(tmp_path):
    loop = {}
    loop["a"] = loop
    (tmp_path / "loop.pt").write_bytes(zip_file(pickle.dumps(loop)))
    with refuses(CheckpointError, "loop.pt", "nested"):
        read_tensors(tmp_path / "loop.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "not weights")
    with refuses(CheckpointError, "other.pt", 0, "data.pkl"):
        read_tensors(tmp_path / "other.pt")


# ------------------------------------------------------------------------------------- safetensors and folders

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16)}


def test_the_first_known_file_of_a_folder_is_taken(tmp_path):
    for index, name in enumerate(reversed(("model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"))):
        value = np.full(2, index, np.float32)
        if name.endswith(".bin"):
            content = tensor_pickle(shape=(2,), strides=(1,), count=2)
            (tmp_path / name).write_bytes(zip_file(content, value.tobytes()))
        else:
            safetensors.numpy.save_file({"a": value}, tmp_path / name)
        np.testing.assert_array_equal(read_tensors(tmp_path)["a"], value)


@pytest.mark.parity
def test_shards_of_pytorch_files(tmp_path):
    import torch

    for index, key in enumerate("ab"):
        torch.save({key: torch.full((2,), index)}, tmp_path / f"pytorch_model-{index}.bin")
    weight_map = {key: f"pytorch_model-{index}.bin" for index, key in enumerate("ab")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert {key: value.tolist() for key, value in read_tensors(tmp_path).items()} == {"a": [0, 0], "b": [1, 1]}


def test_absent_and_unreadable_files_are_named(tmp_path):
    with refuses(FileNotFoundError, tmp_path / "nowhere.safetensors"):
        read_tensors(tmp_path / "nowhere.safetensors")
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    with refuses(FileNotFoundError, "model.safetensors", "flax_model.msgpack"):
        read_tensors(tmp_path)
    with refuses(CheckpointError, "flax_model.msgpack", ".safetensors"):
        read_tensors(tmp_path / "flax_model.msgpack")

    whole = safetensors.numpy.save(WEIGHTS)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for content in (whole[:50], whole[:-1], b"", pointer, b"\x08" + b"\0" * 7 + b"\xff" * 8):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(content)
        with refuses(CheckpointError, path, f"{len(content):,} bytes", "safetensors"):
            read_tensors(path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with refuses(CheckpointError, "model.safetensors.index.json"):
        read_tensors(tmp_path)


# -------------------------------------------------------------------------------------------------------- names


def test_a_packaged_name_is_looked_up_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    with (
        refuses(FileNotFoundError, "walkers_vit_tiny", "walkers_vit_tiny.safetensors"),
        located("walkers_vit_tiny"),
    ):
        pass
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "walkers_vit_tiny.safetensors").touch()
    with located("walkers_vit_tiny") as path:
        assert path == tmp_path / "weights" / "walkers_vit_tiny.safetensors"


def test_a_path_goes_before_a_published_name_and_unknown_names_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("openai/ViT-B-16")
    with located("openai/ViT-B-16") as path:
        assert str(path) == "openai/ViT-B-16"
    with refuses(FileNotFoundError, "ViT-B-16", "hf:ORG/REPO", "walkers", "openai/ViT-B-16"):
        located("ViT-B-16").__enter__()


def test_published_files_are_asked_for_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "jaxreid" / "weights" / "ViT-B-16.pt"
    with refuses(FileNotFoundError, "https://openaipublic", "/ViT-B-16.pt", "SHA-256", "5806e77c", path):
        located("openai/ViT-B-16").__enter__()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    with refuses(CheckpointError, path, digest, "https://", "5806e77c"):
        located("openai/ViT-B-16").__enter__()
    for sha256 in (digest, digest[:8], ""):
        monkeypatch.setitem(PUBLISHED, "openai/ViT-B-16", PUBLISHED["openai/ViT-B-16"]._replace(sha256=sha256))
        assert located("openai/ViT-B-16").__enter__() == path
    with refuses(FileNotFoundError, "SHA-256", "0676ba61"):
        located("torchvision/resnet50-v1").__enter__()
    with refuses(FileNotFoundError, "dinov2_vits14/dinov2_vits14_reg4_pretrain.pth"):
        located("dinov2/vits14_reg4").__enter__()


# ------------------------------------------------------------------------------------------------- Hugging Face


class Repositories(http.server.BaseHTTPRequestHandler):
    """The part of Hugging Face's server that lists and serves files."""

    files: dict  # "org/repo" → {name: content}, or an error code of the server
    requests: list

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        listing = self.path.startswith("/api/models/")
        org, repo, *rest = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/", 4)
        held, code = self.files.get(f"{org}/{repo}"), None
        if held is None or (isinstance(held, str) and not listing):
            code = held or "RepoNotFound"
        elif rest and rest[1] not in ("main", "v1", "c" * 40):
            code = "RevisionNotFound"
        elif not listing and rest[2] not in held:
            code = "EntryNotFound"
        if listing:  # which Hugging Face does of gated repositories too
            names = ["model.safetensors"] if isinstance(held, str) else held or ()
            siblings = [{"rfilename": name} for name in names]
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names]
            about = {"id": f"{org}/{repo}", "sha": "c" * 40, "siblings": siblings}
            body = json.dumps(tree if rest[:1] == ["tree"] else about).encode()
        else:
            self.requests.append((self.command, rest[2]))
            body = b"" if code else held[rest[2]]
        self.send_response({None: 200, "GatedRepo": 403}.get(code, 404))
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub on this machine, and an empty cache."""
    from huggingface_hub import constants

    handler = type("Handler", (Repositories,), {"files": {}, "requests": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    handler.stop = functools.cache(lambda: (running.shutdown(), running.server_close()))
    yield handler
    handler.stop()


def test_a_repository_is_fetched_once_and_found_again_without_network(server):
    content = {"model.safetensors": safetensors.numpy.save(WEIGHTS), "config.json": b"{}", "pytorch_model.bin": b"x"}
    server.files["org/model"] = content
    with located("hf:org/model") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
        np.testing.assert_array_equal(read_tensors(folder)["a.weight"], WEIGHTS["a.weight"])
    with located("hf:org/model@v1") as folder:
        assert "c" * 40 in str(folder)
    assert sorted(request for request in server.requests if request[0] == "GET") == [
        ("GET", "config.json"),
        ("GET", "model.safetensors"),
    ]
    server.stop()
    with located("hf:org/model") as again:
        assert again == folder


def test_the_other_forms_of_a_repository(server):
    server.files["org/clip"] = {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"x"}
    with located("hf:org/clip") as folder:
        assert sorted(p.name for p in folder.iterdir()) == ["open_clip_config.json", "open_clip_pytorch_model.bin"]
    index = json.dumps({"weight_map": {key: f"model-{key[0]}.safetensors" for key in WEIGHTS}}).encode()
    shards = {f"model-{key[0]}.safetensors": safetensors.numpy.save({key: value}) for key, value in WEIGHTS.items()}
    server.files["org/large"] = {"model.safetensors.index.json": index, **shards}
    with located("hf:org/large") as folder:
        assert read_tensors(folder).keys() == WEIGHTS.keys()


def test_repositories_that_can_not_be_had_are_named(server):
    server.files |= {"org/closed": "GatedRepo", "org/empty": {"config.json": b"{}"}, "org/model": {}}
    for name, error, *named in (
        ("hf:org/closed", CheckpointError, "/org/closed", "gated", "terms"),
        ("hf:org/absent", FileNotFoundError, "/org/absent", "private"),
        ("hf:org/model@v9", FileNotFoundError, "/org/model", "v9"),
        ("hf:org/empty", FileNotFoundError, "/org/empty", "model.safetensors"),
        ("hf:model", ValueError, "'hf:model'", "hf:ORG/REPO"),
        ("hf:org/model/file", ValueError, "hf:org/model/file", "hf:ORG/REPO"),
    ):
        with refuses(error, *named):
            located(name).__enter__()


def test_without_network_the_error_says_what_to_put_where(server, monkeypatch):
    from huggingface_hub import constants

    server.stop()
    named = (
        "hf:openai/clip-vit-base-patch16",
        "hf download openai/clip-vit-base-patch16 --revision v1 --local-dir clip-vit-base-patch16\n",
        "config.json",
        "checkpoint=/path/to/clip-vit-base-",
    )
    with refuses(FileNotFoundError, *named):
        located("hf:openai/clip-vit-base-patch16@v1").__enter__()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with refuses(FileNotFoundError, *named):
        located("hf:openai/clip-vit-base-patch16@v1").__enter__()
    assert hub.REACHABLE_WITHIN <= 10
