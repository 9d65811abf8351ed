"""People detectors: a picture in, person boxes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from jaxreid.errors import MissingPackageError, UserError
from jaxreid.files import expand

# u8[H, W, 3] in OpenCV's BGR order -> boxes f32[N, 4] (x, y, width, height in pixels), scores f32[N].
Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

PERSON_LABELS = ("person", "pedestrian", "people", "human")
# The HOG people model was trained on windows with a margin around the person.
HOG_PERSON_WIDTH, HOG_PERSON_HEIGHT = 0.70, 0.84
HOG_WINDOW = (64, 128)


def make_detector(name: str, *, upscale: float = 1.5, min_score: float | None = None) -> Detector:
    """The detector that a command line names.

    Args:
      name: `hog`, or `hf:` followed by the id of a Hugging Face object detector or the folder that holds one.
      upscale: enlargement of the picture before HOG looks at it; other detectors ignore it.
      min_score: lowest score of a box; None: 0 for HOG (a distance to its decision plane), 0.5 for Hugging Face
        (a probability).

    Raises:
      UserError: no such detector, or its model cannot be had (the message says what to do).
      ImportError: the packages of an optional detector are missing.
    """
    if name == "hog":
        return hog_detector(upscale, 0.0 if min_score is None else min_score)
    kind, _, model = name.partition(":")
    if kind == "hf" and model:
        return huggingface_detector(str(expand(model)), 0.5 if min_score is None else min_score)
    raise UserError(f"--detector {name!r} is unknown; use `hog`, or `hf:` and a model id or folder")


def hog_detector(upscale: float = 1.5, min_score: float = 0.0) -> Detector:
    """OpenCV's HOG people detector; its boxes, which have a margin, are shrunk to the person.

    It needs people of about 100 pixels or more after `upscale`, upright and nearly whole; on 768×576 footage of
    people 90 pixels tall, an upscale of 1.5 finds 87 % of them, 2.0 92 %, 1.0 fewer than half.
    """
    if not hasattr(cv2, "HOGDescriptor"):
        raise MissingPackageError(
            f"OpenCV {cv2.__version__} has no HOG people detector (5.0 dropped it): "
            'pip install "opencv-python-headless>=4.11,<5", or use --detector hf:MODEL'
        )
    hog = cv2.HOGDescriptor()
    hog.setSVMDetector(np.array(cv2.HOGDescriptor.getDefaultPeopleDetector(), np.float32))

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaled = cv2.resize(image, None, fx=upscale, fy=upscale)
        if scaled.shape[1] < HOG_WINDOW[0] or scaled.shape[0] < HOG_WINDOW[1]:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        boxes, scores = hog.detectMultiScale(scaled, winStride=(8, 8), padding=(8, 8), scale=1.05)
        boxes = shrink(np.asarray(boxes, np.float32).reshape(-1, 4) / upscale, HOG_PERSON_WIDTH, HOG_PERSON_HEIGHT)
        scores = np.asarray(scores, np.float32).reshape(-1)
        kept = scores >= min_score
        return boxes[kept], scores[kept]

    return detect


def shrink(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes f32[N, 4] (x, y, width, height) cut to the central share `width` × `height` of themselves."""
    size = boxes[:, 2:] * np.array([width, height], np.float32)
    return np.concatenate([boxes[:, :2] + (boxes[:, 2:] - size) / 2, size], axis=1)


def huggingface_detector(model: str, min_score: float = 0.5) -> Detector:
    """An object detector of Hugging Face transformers (DETR, RT-DETR, YOLOS, …), reduced to its class of people.

    Args:
      model: a local folder with config, processor and weights, or a model id (downloaded unless in the local cache).
      min_score: lowest probability of a box.

    Raises:
      ImportError: torch or transformers is missing.
      UserError: the model cannot be loaded, or none of its classes is people.
    """
    try:
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection
    except ImportError as error:
        raise MissingPackageError(
            f"--detector hf:{model} needs PyTorch and transformers ({error}): pip install 'jaxreid[tools]', "
            "or use --detector hog"
        ) from error
    try:
        processor = AutoImageProcessor.from_pretrained(model)
        network = AutoModelForObjectDetection.from_pretrained(model)
    except ImportError as error:
        raise MissingPackageError(f"--detector hf:{model} needs one more package: {error}") from error
    except (OSError, ValueError) as error:
        what = (
            f"the folder {model} holds no object detector that transformers can load"
            if Path(model).is_dir()
            else f"{model} is neither a folder here nor a model that could be downloaded"
        )
        raise UserError(
            f"--detector hf:{model}: {what}. Without a network, fetch it elsewhere "
            "(`hf download MODEL --local-dir FOLDER`), copy the folder and give --detector hf:FOLDER; "
            f"it must hold config.json, preprocessor_config.json and the weights.\n  {error}"
        ) from error
    names = {int(number): str(name) for number, name in network.config.id2label.items()}
    people = [number for number, name in names.items() if name.lower() in PERSON_LABELS]
    if not people:
        raise UserError(
            f"--detector hf:{model}: no class is called {' or '.join(PERSON_LABELS)}; "
            f"the model knows {', '.join(sorted(names.values())[:20])}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).eval()

    def detect(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = processor(images=cv2.cvtColor(image, cv2.COLOR_BGR2RGB), return_tensors="pt").to(device)
        with torch.inference_mode():
            outputs = network(**inputs)
        found = processor.post_process_object_detection(outputs, threshold=min_score, target_sizes=[image.shape[:2]])[0]
        kept = torch.isin(found["labels"].cpu(), torch.tensor(people)).numpy()
        corners = found["boxes"].float().cpu().numpy().reshape(-1, 4)[kept]
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return boxes.astype(np.float32), found["scores"].float().cpu().numpy()[kept]

    return detect
