"""Whether the bytes of a JPEG or PNG are a whole picture.

Decoders fill what is missing of a cut file with grey and call it a success, so the structure is read as well.
"""

from __future__ import annotations

import os
import re
import zlib

from jaxreid.data import pictures
from jaxreid.data.pictures import JPEG_SIGNATURE, PNG_SIGNATURE, PictureError

# In entropy-coded data, FF is followed by 00 (a stuffed byte), FF (padding) or D0…D7 (a restart); else a marker begins.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def read_image(path: str | os.PathLike[str]) -> tuple[bytes, str | None]:
    """The bytes of an image file, and what is wrong with them or with reading them, or None."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return b"", str(error.strerror)
    return data, image_fault(data)


def image_fault(data: bytes) -> str | None:
    """What is wrong with an encoded image, or None; reads its structure to the end and decodes it."""
    if not data:
        return "empty file"
    if data.startswith(JPEG_SIGNATURE):
        fault = _jpeg_fault(data)
    elif data.startswith(PNG_SIGNATURE):
        fault = _png_fault(data)
    else:
        return f"neither JPEG nor PNG (begins with {data[:4].hex()})"
    if fault is None:
        try:
            pictures.load(data)
        except PictureError as error:
            fault = str(error)
    return fault


def _jpeg_fault(data: bytes) -> str | None:
    """Walks the segments (ITU-T T.81, annex B) to the end-of-image marker.

    Looking for FFD9 anywhere is not enough: a thumbnail in the header has one of its own.
    """
    position, scans = 2, 0
    while position + 2 <= len(data):
        if data[position] != 0xFF:
            return f"no marker at byte {position}"
        code = data[position + 1]
        if code == 0xFF:  # padding in front of a marker
            position += 1
        elif code == 0xD9:
            return None if scans else "ends before its first scan"
        else:
            length = int.from_bytes(data[position + 2 : position + 4], "big")
            position += 2 + length
            if length < 2:
                return f"segment of impossible length {length} at byte {position - length}"
            if code == 0xDA:  # start of scan: a header, then entropy-coded data up to the next marker
                scans += 1
                marker = _NEXT_MARKER.search(data, position)
                if marker is None:
                    break
                position = marker.start()
    return "truncated: no end-of-image marker"


def _png_fault(data: bytes) -> str | None:
    """Walks the chunks to IEND and checks their sums (PNG specification, section 5)."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        body = data[position + 4 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            break
        if zlib.crc32(body) != int.from_bytes(checksum, "big"):
            return f"damaged chunk at byte {position}"
        if body[:4] == b"IEND":
            return None
        position += 12 + length
    return "truncated: no IEND chunk"
