"""Decode, encode and resize images. Imports no torch.

:func:`to_rgb` converts every mode and depth. Where Pillow would drop bits, this module reads the file another way
or rejects it.
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

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # others may start programs (EPS) or are documents
_JPEG_OR_PNG = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng")
IMAGE_SUFFIXES = (*_JPEG_OR_PNG, ".webp", ".tif", ".tiff", ".bmp", ".gif")  # other files are ignored
_ORIENTATION_TAG = 0x0112
_TURN = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEPTHS = (8, 10, 12, 14, 16)  # bits of a channel that cameras and scanners have
# Of 16 bits a channel Pillow keeps the upper eight; with the byte order swapped, the lower eight.
_LOWER_BYTES = {f"{m};16{a}": f"{m};16{b}" for m in ("RGB", "RGBA") for a, b in ("BL", "LB", "NB")}
_DEEP = re.compile(r";(12|16|32)")  # in raw modes of more than 8 bits a channel
_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF, and values of them:
_WHITE_IS_ZERO, _SEPARATE, _SIGNED = 0, 2, 2


def open_image(data: bytes) -> ImageFile.ImageFile:
    """Decode every pixel of an image file; colours of 16 bits a channel are scaled as in :func:`as_rgb`.

    Raises:
        DataError: it is empty, truncated, damaged, of an unknown format, or of one that Pillow misreads.
    """
    try:
        image = read_header(data)
        _refuse_misread(image)
        deep = has_16_bit_colours(image)
        image.load()
        if deep:
            image.paste(_scaled_colours(image, data))
    except Exception as error:  # a damaged file makes PIL's decoders raise almost anything
        raise DataError(f"cannot be decoded ({_reason(error, data)})") from error
    return image


def read_header(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def raw_modes(image: ImageFile.ImageFile) -> set[str]:
    """How Pillow will read the pixels; empty after it has."""
    args = (tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args for tile in image.tile)
    return {raw for raw in args if isinstance(raw, str)}


def has_16_bit_colours(image: ImageFile.ImageFile) -> bool:
    """Whether it has colours of 16 bits a channel, and is not decoded yet."""
    return not _LOWER_BYTES.keys().isdisjoint(raw_modes(image))


def _refuse_misread(image: ImageFile.ImageFile) -> None:
    """Raise DataError, with the form of the pixels, if Pillow decodes other values than the file has."""
    kept = image.mode.startswith(("I", "F")) or image.format == "BMP"  # whose BGR;16 is of 5 and 6 bits
    lost = [raw for raw in raw_modes(image) if not kept and _DEEP.search(raw) and raw not in _LOWER_BYTES]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        lost += _misread_tiff(image.tag_v2)
    if lost:
        raise DataError(f"pixels of the form {lost[0]} are not read; save grey or RGB of 8 or 16 bits")


def _misread_tiff(tags: Mapping[int, Any]) -> Iterator[str]:
    bits = tags.get(_BITS, (1,))
    if max(bits) == 8 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        yield "int8"
    if max(bits) > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        yield f"{max(bits)} bits, of which 0 is white"
    if max(bits) > 8 and len(bits) > 1 and tags.get(_PLANAR) == _SEPARATE:
        yield f"{max(bits)} bits in separate planes"


def _scaled_colours(image: Image.Image, data: bytes) -> Image.Image:
    """Colours of 16 bits in 8, from an image of their upper bytes and the file."""
    low = read_header(data)
    for number, tile in enumerate(low.tile):
        raw, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        low.tile[number] = tile._replace(args=(_LOWER_BYTES[raw], *others))
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
    channels = (values[..., :3], values[..., 3:])  # colours, and alpha if there is one
    return Image.fromarray(np.concatenate([_eight_bits(part) for part in channels], axis=-1))


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known format: {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def as_rgb(image: Image.Image) -> Image.Image:
    """To 8 bits of red, green and blue.

    Values of more bits have the smallest range of 8, 10, 12, 14 or 16 bits that holds the largest of them,
    and its upper eight bits are kept. What is transparent becomes white, as on paper: the colour that a file
    has there is never visible.

    Raises:
        DataError: it holds floats, values below 0 or beyond 16 bits, or is of a mode that has no RGB.
    """
    if image.mode == "F":
        raise DataError("holds floats of an unknown range; 8 or 16 bits a channel are read")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _eight_bits(values)
        grey[values == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey)
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"is of mode {image.mode}, which cannot be read as RGB ({error})") from error


def _eight_bits(values: NDArray[np.integer]) -> NDArray[np.uint8]:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    bits = next((bits for bits in _DEPTHS if high < 1 << bits), None)
    if low < 0 or bits is None:
        raise DataError("holds values below 0 or above 65535; scale them to 0 to 65535")
    return (values >> (bits - 8)).astype(np.uint8)


def read_image(path: Path) -> Image.Image:
    """An image file as RGB, upright as viewers show it.

    Raises:
        DataError: it is missing or cannot be decoded.
    """
    try:
        return upright(open_image(path.read_bytes()))
    except (OSError, DataError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def upright(image: Image.Image) -> Image.Image:
    """RGB as viewers show it, turned by its EXIF orientation: what users show to the network.

    Args:
        image: one of 16 bits a channel has to be as ``Image.open`` returns it: once its pixels are read
            (``load``, ``copy``, ``convert`` ...), Pillow has dropped the lower eight bits of each.

    Raises:
        DataError: it cannot be decoded, or :func:`as_rgb` refuses it, or its colours have lost bits.
    """
    if isinstance(image, ImageFile.ImageFile):
        image = _with_all_bits(image)
    image.load()  # which turns a TIFF, and takes its orientation away
    turn = _TURN.get(orientation(image))
    rgb = as_rgb(image if turn is None else image.transpose(turn))
    rgb.info.clear()  # or the copy would be turned again
    return rgb


def _with_all_bits(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Refuse pixels that lose or have lost bits: a decoded image does not tell, but its file does."""
    try:
        header = image if image.tile or not image.filename else Image.open(image.filename, formats=FORMATS)
    except (OSError, ValueError):  # not there any more
        return image
    _refuse_misread(header)
    if not has_16_bit_colours(header):
        return image
    if header is not image or image.fp is None:
        raise DataError(
            f"{os.fsdecode(image.filename)} has 16 bits a channel, of which Pillow dropped eight when it "
            "read the pixels: give the image as Image.open returns it"
        )
    image.fp.seek(0)
    return open_image(image.fp.read())


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none that can be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a malformed block makes the reader raise almost anything
        return 1
    return value if isinstance(value, int) and value in _TURN else 1


def decode_rgb(data: bytes) -> Image.Image:
    """The stored pixels as RGB; an EXIF orientation is not applied, as annotations are of stored pixels.

    Raises:
        DataError: it cannot be decoded, or :func:`as_rgb` refuses it.
    """
    return as_rgb(open_image(data))


def open_stored(data: bytes) -> ImageFile.ImageFile:
    """An image file of a data set, with the pixels as they are stored.

    Raises:
        DataError: :func:`open_image` or :func:`as_rgb` refuses it; it holds several pictures; or it is a TIFF
            file with an EXIF orientation, which Pillow always applies.
    """
    image = open_image(data)
    as_rgb(image)
    turned = orientation(read_header(data))  # reading the pixels of a TIFF takes it away
    if image.format == "TIFF" and turned != 1:
        raise DataError(
            f"is a TIFF file with EXIF orientation {turned}; save its pixels as they are annotated"
        )
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: the first JPEG is the image
        raise DataError(f"is a {image.format} file of several pictures; a sample has one, save it alone")
    return image


def pack_image(data: bytes) -> tuple[str, bytes]:
    """Suffix and content of an image in a shard: JPEG and PNG as they are, all else as a PNG of its RGB."""
    kind = read_header(data).format
    if kind in ("JPEG", "MPO"):
        return "jpg", data
    return "png", data if kind == "PNG" else encode_png(decode_rgb(data))


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear with antialiasing; ``size`` is height, width."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
