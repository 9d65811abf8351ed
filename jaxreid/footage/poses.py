"""Key points of people: crops in, COCO-17 out.

Left and right are the person's own. A crop is the person's box: no detector looks for people in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jaxreid.errors import MissingFileError, MissingPackageError, UserError
from jaxreid.files import expand

JOINTS = 17
BACKENDS = "blazepose:FILE, vitpose:MODEL or stripes"
UNITS = "pixels of the frame, the centre of the first pixel is 0.5; frames without a person are masked"

# --- what a command line names ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class PoseEstimator:
    """Finds the key points of crops.

    Attributes:
      locate: crops u8[H, W, 3] in RGB order, of any sizes → f32[N, 17, 3]: x, y in pixels of each crop (the centre of
        its first pixel is 0.5), score; all zero where it finds nobody.
      meta: what a sidecar notes of it.
    """

    locate: Callable[[Sequence[np.ndarray]], np.ndarray]
    meta: Mapping[str, Any]

    def __call__(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """As `locate`; points that lie outside of their crop score 0."""
        points = np.asarray(self.locate(crops), np.float32)
        size = np.array([crop.shape[1::-1] for crop in crops], np.float32)[:, None]
        inside = np.all((points[..., :2] >= 0) & (points[..., :2] <= size), axis=-1)
        points[..., 2] = np.where(inside, points[..., 2], 0)
        return points


def make_estimator(name: str) -> PoseEstimator:
    """The estimator that a command line names.

    Args:
      name: `blazepose:` and the file of the model, or the mediapipe wheel that carries it; `vitpose:` and the id of a
        Hugging Face model, or the folder that holds one; `stripes`.

    Raises:
      UserError: no such backend, or its model cannot be had (the message says what to do).
      MissingPackageError: the packages of an optional backend are missing.
    """
    kind, _, model = name.partition(":")
    if name == "stripes":
        return stripes()
    if kind == "blazepose" and model:
        return blazepose(expand(model))
    if kind == "vitpose" and model:
        return vitpose(str(expand(model)))
    raise UserError(f"--backend {name!r} is unknown; use {BACKENDS}")


def _meta(model: str, score: str, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "order": "COCO-17",
        "columns": ["x", "y", "score"],
        "units": UNITS,
        "score": score,
        **more,
    }


# --- BlazePose -------------------------------------------------------------------------------------------------------

MODEL_FILE = "pose_landmark_full.tflite"
SHA256 = "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f"
HOW_TO_GET_IT = (
    "pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 "
    "mediapipe==0.10.14 brings that wheel, give it as blazepose:WHEEL"
)
SIDE = 256  # pixels of the square that the network sees
MARGIN = 1.25  # that square in heights of the person's box
PRESENT = 0.5  # lowest probability that somebody is there
# Of the 33 body landmarks (six more that the network gives mark the body's circle) those of COCO, in its order.
COCO_OF_BLAZEPOSE = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)

# f32[1, 3, SIDE, SIDE] in RGB order, 0 … 1 → landmarks f32[39, 5] (x, y, z in pixels of the square, logits of
# visibility and presence), probability that somebody is there.
Network = Callable[[np.ndarray], tuple[np.ndarray, float]]


def blazepose(path: Path) -> PoseEstimator:
    """BlazePose GHUM full, one of the models of mediapipe (Apache-2.0), run by OpenCV.

    Args:
      path: `pose_landmark_full.tflite`, or a wheel of mediapipe that holds it.

    Raises:
      UserError: the file is not there, or is another.
    """
    net, facts = blazepose_net(path)

    def network(pixels: np.ndarray) -> tuple[np.ndarray, float]:
        net.setInput(pixels)
        landmarks, presence = net.forward(("Identity", "Identity_1"))
        return landmarks.reshape(-1, 5), float(presence[0, 0])

    return PoseEstimator(
        lambda crops: np.stack([blazepose_points(network, crop) for crop in crops]),
        _meta("BlazePose GHUM full", "visibility", **facts),
    )


def blazepose_net(path: Path) -> tuple[Any, dict[str, str]]:
    """(OpenCV's network of a file as for `blazepose`, what a sidecar notes of file and tool)."""
    net = cv2.dnn.readNetFromTFLite(np.frombuffer(_model_bytes(path), np.uint8))
    return net, {"file": f"sha256 {SHA256}", "tool": f"OpenCV {cv2.__version__}"}


def _model_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}; the model is in a wheel of mediapipe: {HOW_TO_GET_IT}")
    content, where = path.read_bytes(), str(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            inner = next((name for name in wheel.namelist() if Path(name).name == MODEL_FILE), None)
            if inner is None:
                raise UserError(f"{path} holds no {MODEL_FILE} (newer wheels of mediapipe do not): {HOW_TO_GET_IT}")
            content, where = wheel.read(inner), f"{path}, {inner}"
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise UserError(f"{where} is not the {MODEL_FILE} that is read here (its sha256 is {found}): {HOW_TO_GET_IT}")
    return content


def blazepose_points(network: Network, crop: np.ndarray) -> np.ndarray:
    """Key points f32[17, 3] of a crop u8[H, W, 3], as `PoseEstimator.locate` gives them."""
    square, left, top = in_square(crop)
    side = len(square)
    landmarks, presence = network(blazepose_pixels(square))
    if presence < PRESENT:
        return np.zeros((JOINTS, 3), np.float32)
    chosen = landmarks[list(COCO_OF_BLAZEPOSE)]
    places = chosen[:, :2] * (side / SIDE) - (left, top)
    visibility = 1 / (1 + np.exp(-chosen[:, 3:4]))
    return np.concatenate([places, visibility], axis=1).astype(np.float32)


def blazepose_pixels(square: np.ndarray) -> np.ndarray:
    """A square u8[S, S, 3] as the network takes it, f32[1, 3, SIDE, SIDE]."""
    method = cv2.INTER_AREA if len(square) > SIDE else cv2.INTER_LINEAR
    return cv2.dnn.blobFromImage(cv2.resize(square, (SIDE, SIDE), interpolation=method), 1 / 255)


def in_square(crop: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A crop in the middle of a square of `MARGIN` of its longer side; how many columns and rows are before it.

    Its edges go on outwards: of black, grey, the mean colour and a mirror image, that moves the points least away from
    where they are found among the crop's real surroundings (docs/sidecars.md).
    """
    height, width = crop.shape[:2]
    side = round(MARGIN * max(height, width))
    left, top = (side - width) // 2, (side - height) // 2
    around = (top, side - height - top, left, side - width - left)
    return cv2.copyMakeBorder(crop, *around, cv2.BORDER_REPLICATE), left, top


# --- ViTPose ---------------------------------------------------------------------------------------------------------


def vitpose(model: str) -> PoseEstimator:
    """A ViTPose model of Hugging Face transformers that knows COCO's key points; on a GPU where PyTorch finds one.

    Args:
      model: a local folder with config, processor and weights, or a model id (downloaded unless in the local cache).

    Raises:
      MissingPackageError: torch or transformers is missing.
      UserError: the model cannot be loaded, or gives other key points.
    """
    try:
        import torch
        from transformers import AutoProcessor, VitPoseForPoseEstimation
    except ImportError as error:
        raise MissingPackageError(
            f"--backend vitpose:{model} needs PyTorch and transformers ({error}): pip install 'jaxreid[sidecars]', or "
            "use --backend blazepose:FILE"
        ) from error
    try:
        processor = AutoProcessor.from_pretrained(model)
        network: Any = VitPoseForPoseEstimation.from_pretrained(model)
    except ImportError as error:
        raise MissingPackageError(f"--backend vitpose:{model} needs one more package: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"--backend vitpose:{model}: no ViTPose model that transformers can load. Without a network, fetch it "
            "elsewhere (`hf download MODEL --local-dir FOLDER`), copy the folder and give --backend vitpose:FOLDER; "
            f"it must hold config.json, preprocessor_config.json and the weights.\n  {error}"
        ) from error
    if network.config.num_labels != JOINTS:
        raise UserError(f"--backend vitpose:{model} gives {network.config.num_labels} key points, COCO has {JOINTS}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).eval()
    # Models of several experts are told which data set's key points are wanted; COCO is the first.
    experts = getattr(network.config.backbone_config, "num_experts", 1) > 1

    def forward(pixels: Any) -> Any:
        inputs = pixels.to(device)
        which = {"dataset_index": torch.zeros(len(inputs), dtype=torch.int64, device=device)} if experts else {}
        with torch.inference_mode():
            return network(inputs, **which)

    return PoseEstimator(
        lambda crops: vitpose_points(processor, forward, crops),
        _meta(f"ViTPose {model}", "maximum of the heat map", revision=getattr(network.config, "_commit_hash", None)),
    )


def vitpose_points(processor: Any, forward: Callable[[Any], Any], crops: Sequence[np.ndarray]) -> np.ndarray:
    """Key points f32[N, 17, 3] of crops, as `PoseEstimator.locate` gives them.

    Args:
      processor: a `VitPoseImageProcessor`.
      forward: pixels f32[N, 3, h, w] → the model's output.
      crops: u8[H, W, 3] in RGB order.
    """
    boxes = [[[0.0, 0.0, crop.shape[1], crop.shape[0]]] for crop in crops]
    pixels = processor(list(crops), boxes=boxes, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    found = processor.post_process_pose_estimation(forward(pixels), boxes=boxes)
    points = np.zeros((len(crops), JOINTS, 3), np.float32)
    for row, (person,) in enumerate(found):
        points[row, :, :2] = person["keypoints"].float().cpu().numpy() + 0.5  # it counts from the first pixel's centre
        points[row, :, 2] = person["scores"].float().cpu().numpy()
    return points


# --- a prior without a model -----------------------------------------------------------------------------------------

# x, y in shares of the crop of somebody who faces the camera: head in the upper 16 %, torso 16 to 50 %, arms in the
# outer columns 16 to 55 %, legs below 50 %, left and right of the middle.
STRIPES = np.array(
    [
        (0.50, 0.09), (0.54, 0.07), (0.46, 0.07), (0.58, 0.08), (0.42, 0.08),
        (0.66, 0.20), (0.34, 0.20), (0.84, 0.35), (0.16, 0.35), (0.84, 0.51), (0.16, 0.51),
        (0.60, 0.48), (0.40, 0.48), (0.60, 0.72), (0.40, 0.72), (0.60, 0.94), (0.40, 0.94),
    ],
    np.float32,
)  # fmt: skip


def stripes() -> PoseEstimator:
    """The same body in every crop, in shares of its size: no model, score 1."""

    def locate(crops: Sequence[np.ndarray]) -> np.ndarray:
        size = np.array([crop.shape[1::-1] for crop in crops], np.float32)[:, None]
        return np.concatenate([STRIPES * size, np.ones((len(crops), JOINTS, 1), np.float32)], axis=-1)

    return PoseEstimator(locate, _meta("stripes, a fixed body in every frame", "always 1", prior=True))
