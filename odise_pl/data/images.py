"""Images and label maps: decoding, encoding and resizing. Imports no torch."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from odise_pl.data.records import DataError

# Orientations 5 to 8 swap height and width; COCO's sizes and annotations are of the stored pixels.
_ORIENTATION_TAG = 0x0112
# Value that stands for no class in a grey PNG, by Pillow's mode.
_NO_CLASS = {"L": 255, "P": 255, "I;16": 65535, "I": 65535}
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


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
        DataError: it cannot be decoded, or holds floats.
    """
    return as_rgb(open_image(data))


def as_rgb(image: Image.Image) -> Image.Image:
    """To 8 bits of red, green and blue; of 16 bits the upper eight, which Pillow alone would clip.

    What is transparent shows white, as on paper: the colour that a file has there is nothing anybody sees.

    Raises:
        DataError: it holds floats, of which nothing says what is white.
    """
    if image.mode == "F":
        raise DataError("holds floats of an unknown range; 8 or 16 bits a channel are read")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        image = Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def read_image(path: Path) -> Image.Image:
    """An image file as RGB, upright as viewers show it.

    Raises:
        DataError: it is not there or cannot be decoded.
    """
    try:
        return as_rgb(ImageOps.exif_transpose(open_image(path.read_bytes())))
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def decode_ids(data: bytes) -> NDArray[np.int32]:
    """The segment ids of a panoptic PNG, int32 [H, W]: R + 256 G + 65536 B, 0 for void.

    Raises:
        DataError: it cannot be decoded or is no RGB PNG.
    """
    image = open_image(data)
    if image.format != "PNG" or image.mode != "RGB":
        raise DataError(f"is a {image.format} of mode {image.mode}; a panoptic map is an RGB PNG")
    # Pillow holds RGB in four bytes a pixel: read as one little-endian integer, the last byte cut off
    values = np.frombuffer(image.tobytes("raw", "RGBX"), dtype="<i4") & 0xFFFFFF
    return values.reshape(image.height, image.width).astype(np.int32, copy=False)


def unique_ids(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """The sorted values of a map; quicker than sorting its pixels, because segments are runs."""
    flat = ids.ravel()
    starts = np.flatnonzero(np.diff(flat)) + 1
    return np.unique(np.concatenate([flat[:1], flat[starts]]))


def encode_ids(ids: NDArray[np.int32]) -> bytes:
    """The inverse of :func:`decode_ids`."""
    channels = np.ascontiguousarray(ids, dtype="<i4").view(np.uint8).reshape(*ids.shape, 4)
    return _png(Image.fromarray(channels[..., :3]))


def decode_semantic(data: bytes) -> NDArray[np.int32]:
    """A class map, int32 [H, W], -1 for no class, from a grey PNG.

    The values are class indices; 255 in a PNG of 8 bits and 65535 in one of 16 bits is no class.

    Raises:
        DataError: it cannot be decoded or is no grey PNG.
    """
    image = open_image(data)
    nothing = _NO_CLASS.get(image.mode)
    if image.format != "PNG" or nothing is None:
        raise DataError(f"is a {image.format} of mode {image.mode}; a semantic map is a grey PNG")
    values = np.array(image, dtype=np.int32)
    values[values == nothing] = -1
    return values


def encode_semantic(classes: NDArray[np.integer]) -> bytes:
    """The inverse of :func:`decode_semantic`, in 16 bits."""
    return _png(Image.fromarray(np.where(classes < 0, 65535, classes).astype(np.uint16)))


def is_whole_png(path: Path) -> bool:
    """Whether a file is there and ends as every PNG does; its pixels are not decoded."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear with antialiasing; ``size`` is height, width."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def resize_ids(ids: NDArray[np.int32], size: tuple[int, int]) -> NDArray[np.int32]:
    """Nearest pixel centre; ``size`` is height, width."""
    rows, columns = (_nearest(old, new) for old, new in zip(ids.shape, size, strict=True))
    return ids[rows[:, None], columns]


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    # floor((i + 1/2) * old / new) in whole numbers: exact where a centre falls on the border of two pixels.
    return (2 * np.arange(new) + 1) * old // (2 * new)
