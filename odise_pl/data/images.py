"""Decoding of image and panoptic PNG bytes. Imports no torch."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from odise_pl.data.records import DataError

# Orientations 5 to 8 swap height and width; COCO's sizes and annotations are of the stored pixels.
_ORIENTATION_TAG = 0x0112


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Decode every pixel of an image file.

    Raises:
        DataError: it is empty, truncated, damaged or of an unknown format.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # a damaged file makes PIL's decoders raise almost anything
        raise DataError(f"cannot be decoded ({_reason(error, data)})") from error
    return image


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known format"
    return str(error) or type(error).__name__


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for upright."""
    return int(image.getexif().get(_ORIENTATION_TAG, 1))


def decode_rgb(data: bytes) -> Image.Image:
    """The stored pixels as RGB; an EXIF orientation is not applied, as annotations are of stored pixels.

    Raises:
        DataError: it cannot be decoded.
    """
    return open_image(data).convert("RGB")


def decode_ids(data: bytes) -> NDArray[np.int32]:
    """The segment ids of a panoptic PNG, int32 [H, W]: R + 256 G + 65536 B, 0 for void.

    Raises:
        DataError: it cannot be decoded or is no RGB PNG.
    """
    image = open_image(data)
    if image.format != "PNG" or image.mode != "RGB":
        raise DataError(f"is a {image.format} of mode {image.mode}; a panoptic map is an RGB PNG")
    red, green, blue = np.moveaxis(np.asarray(image, dtype=np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def unique_ids(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """The sorted values of a map; quicker than sorting its pixels, because segments are runs."""
    flat = ids.ravel()
    starts = np.flatnonzero(np.diff(flat)) + 1
    return np.unique(np.concatenate([flat[:1], flat[starts]]))
