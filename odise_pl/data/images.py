"""Decode, encode and resize images. Imports no torch.

:func:`to_rgb` converts every mode and depth. Where Pillow would drop bits, the file is read in another way or
rejected.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from odise_pl.data.records import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # Pillow starts a program for some others (EPS)
_JPEG_OR_PNG = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng")
IMAGE_SUFFIXES = (
    *_JPEG_OR_PNG,
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
)  # others are ignored
_ORIENTATION_TAG = 0x0112
_UNDO_ORIENTATION = {  # by EXIF value
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEPTHS = (8, 10, 12, 14, 16)  # bits per channel of cameras and scanners
# Pillow keeps the upper 8 of 16 bits per channel; with the byte order swapped it keeps the lower 8.
_LOWER_BYTES = {f"{m};16{a}": f"{m};16{b}" for m in ("RGB", "RGBA") for a, b in ("BL", "LB", "NB")}
_DEEP = re.compile(r";(12|16|32)")  # raw modes with more than 8 bits per channel
_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339  # TIFF tags, and their values:
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Decode an image file; colours of 16 bits per channel are scaled as in :func:`to_rgb`.

    Raises:
        DataError: it is empty, truncated or damaged, or Pillow does not know the format or would misread it.
    """
    try:
        image = read_header(data)
        _reject_misread(image)
        deep = has_16_bit_colours(image)
        image.load()
        if deep:
            image.paste(_read_16_bit_colours(image, data))
    except Exception as error:  # a damaged file makes PIL's decoders raise almost anything
        raise DataError(f"cannot be decoded ({_reason(error, data)})") from error
    return image


def read_header(data: bytes) -> ImageFile.ImageFile:
    """The image with its pixels not decoded yet."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def raw_modes(image: ImageFile.ImageFile) -> set[str]:
    """Pillow's names of the pixel format in the file; empty once the pixels are decoded."""
    args = (tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in image.tile)
    return {raw for raw in args if isinstance(raw, str)}


def has_16_bit_colours(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is not decoded yet has colours of 16 bits per channel."""
    return not _LOWER_BYTES.keys().isdisjoint(raw_modes(image))


def _reject_misread(image: ImageFile.ImageFile) -> None:
    """Raise DataError, which names the pixel format, if Pillow would decode wrong values."""
    kept = image.mode.startswith(("I", "F")) or image.format == "BMP"  # its BGR;16 has 5 or 6 bits
    lost = [raw for raw in raw_modes(image) if not kept and _DEEP.search(raw) and raw not in _LOWER_BYTES]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        lost += _misread_tiff(image.tag_v2)
    if lost:
        raise DataError(f"has unsupported pixels ({lost[0]}); save it as grey or RGB of 8 or 16 bits")


def _misread_tiff(tags: Mapping[int, Any]) -> Iterator[str]:
    bits = tags.get(_BITS, (1,))
    if max(bits) == 8 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        yield "int8"
    if max(bits) > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        yield f"{max(bits)} bits where 0 is white"
    if max(bits) > 8 and len(bits) > 1 and tags.get(_PLANAR) == _SEPARATE:
        yield f"{max(bits)} bits in separate planes"


def _read_16_bit_colours(image: Image.Image, data: bytes) -> Image.Image:
    """8-bit colours, from the image that Pillow decoded (the upper bytes) and the file (the lower bytes)."""
    low = read_header(data)
    for number, tile in enumerate(low.tile):
        raw, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        low.tile[number] = tile._replace(args=(_LOWER_BYTES[raw], *others))
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
    channels = (values[..., :3], values[..., 3:])  # colours, and alpha if there is one
    return Image.fromarray(np.concatenate([_to_8_bits(part) for part in channels], axis=-1))


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known format: {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """To 8 bits of red, green and blue.

    Deeper values are taken to have the smallest depth of 8, 10, 12, 14 or 16 bits that holds the largest of
    them, and their upper 8 bits are kept. Transparent pixels become white.

    Raises:
        DataError: it has floats, values outside 0 to 65535, or a mode without RGB.
    """
    if image.mode == "F":
        raise DataError("has float values of unknown range; save it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _to_8_bits(values)
        grey[values == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey)
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"has mode {image.mode}, which cannot be converted to RGB ({error})") from error


def _to_8_bits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    bits = next((bits for bits in _DEPTHS if high < 1 << bits), None)
    if low < 0 or bits is None:
        raise DataError("has values below 0 or above 65535; scale them to 0 to 65535")
    return (values >> (bits - 8)).astype(np.uint8)


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB and turn it upright, as viewers show it.

    Raises:
        DataError: it is missing or cannot be decoded.
    """
    try:
        return to_upright_rgb(open_image(path.read_bytes()))
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB and apply the EXIF orientation, as viewers do.

    Args:
        image: with 16 bits per channel, pass it as ``Image.open`` returns it: Pillow drops the lower 8
            when it reads the pixels (``load``, ``copy``, ``convert`` ...).

    Raises:
        DataError: it cannot be decoded or converted by :func:`to_rgb`, or its colours have lost bits.
    """
    if isinstance(image, ImageFile.ImageFile):
        image = _reload_16_bits(image)
    image.load()  # turns a TIFF and removes its orientation
    turn = _UNDO_ORIENTATION.get(exif_orientation(image))
    rgb = to_rgb(image if turn is None else image.transpose(turn))
    rgb.info.clear()  # otherwise the copy would be turned again
    return rgb


def _reload_16_bits(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Reject pixels that have lost or would lose bits; only the file of a decoded image can tell."""
    try:
        header = image if image.tile or not image.filename else Image.open(image.filename, formats=FORMATS)
    except (OSError, ValueError):  # the file no longer exists
        return image
    _reject_misread(header)
    if not has_16_bit_colours(header):
        return image
    if header is not image or image.fp is None:
        raise DataError(
            f"{os.fsdecode(image.filename)} has 16 bits per channel, and Pillow dropped 8 when it read "
            "the pixels; pass the image as Image.open returns it"
        )
    image.fp.seek(0)
    return open_image(image.fp.read())


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if it is missing or unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a malformed block makes the reader raise almost anything
        return 1
    return value if isinstance(value, int) and value in _UNDO_ORIENTATION else 1


def decode_rgb(data: bytes) -> Image.Image:
    """Decode to RGB, without EXIF orientation: annotations refer to the stored pixels.

    Raises:
        DataError: it cannot be decoded or converted by :func:`to_rgb`.
    """
    return to_rgb(open_image(data))


def open_stored(data: bytes) -> ImageFile.ImageFile:
    """Decode an image file of a data set and check that a sample can hold it.

    Raises:
        DataError: :func:`open_image` or :func:`to_rgb` rejects it, it has several pictures, or it is a TIFF
            with an EXIF orientation, which Pillow always applies.
    """
    image = open_image(data)
    to_rgb(image)
    turned = exif_orientation(read_header(data))  # reading the pixels of a TIFF removes it
    if image.format == "TIFF" and turned != 1:
        raise DataError(
            f"is a TIFF with EXIF orientation {turned}, which Pillow applies; save it as it is annotated"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: the first JPEG is the image
        raise DataError(f"is a {image.format} file of several pictures; save the one that is annotated")
    return image


def pack_image(data: bytes) -> tuple[str, bytes]:
    """Suffix and content of an image in a shard: JPEG and PNG unchanged, other formats as a PNG in RGB."""
    kind = read_header(data).format
    if kind in ("JPEG", "MPO"):
        return "jpg", data
    return "png", data if kind == "PNG" else encode_png(decode_rgb(data))


def encode_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear with antialiasing; ``size`` is height, width."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
