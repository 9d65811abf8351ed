"""Encoded pictures of kinds that OpenCV does not write: palettes, grey with opacity, headers that lie."""

import struct
import zlib

import cv2
import numpy as np

GREY, PALETTE, GREY_ALPHA = 0, 3, 4  # colour types of a PNG


def png(values, kind, **chunks):
    """A PNG of u8[H, W] or u8[H, W, channels], with further chunks (PLTE, tRNS) in front of the pixels."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(np.uint8))
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, parts, parts.values()))


def _chunk(name, body):
    body = name.encode() + body
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def encoded(values, suffix=".png"):
    """By OpenCV, whose colours are BGR."""
    return cv2.imencode(suffix, values)[1].tobytes()


def sixteen_bit(low=0, high=255, shape=(16, 8), seed=0):
    """A grey PNG of values from `low` to `high`."""
    return encoded(np.random.default_rng(seed).integers(low, high + 1, shape).astype(np.uint16))


def claims(data, height, width):
    """A baseline JPEG whose header says another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
