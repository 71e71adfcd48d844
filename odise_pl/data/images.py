"""Decode, encode and resize images. Imports no torch.

Of colours with 16 bits per channel Pillow keeps the upper 8.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from odise_pl.data.records import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # Pillow starts a program for some others (EPS)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # how their files begin
_DEPTHS = (8, 10, 12, 14, 16)  # bits per channel of cameras and scanners


def open_image(data: bytes, draft: bool = False) -> ImageFile.ImageFile:
    """Decode an image file.

    Args:
        data: its content.
        draft: decode a JPEG to an eighth of its size: half the time, and damage is found all the same.

    Raises:
        DataError: it is empty, truncated or damaged, or Pillow does not know the format.
    """
    try:
        image = read_header(data)
        if draft:
            image.draft(None, (1, 1))
        image.load()
    except Exception as error:  # a damaged file makes PIL's decoders raise almost anything
        raise DataError(f"cannot be decoded ({_reason(error, data)})") from error
    return image


def read_header(data: bytes) -> ImageFile.ImageFile:
    """The image with its pixels not decoded yet."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known format: {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def to_rgb(image: Image.Image) -> Image.Image:
    """To 8 bits of red, green and blue.

    Grey values are taken to have the smallest depth of 8, 10, 12, 14 or 16 bits that holds the largest of
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

    Raises:
        DataError: it cannot be converted by :func:`to_rgb`.
    """
    image.load()  # turns a TIFF and removes its orientation
    with suppress(Exception):  # a malformed block makes the reader raise almost anything
        image = ImageOps.exif_transpose(image)
    rgb = to_rgb(image)
    rgb.info.clear()  # otherwise the copy would be turned again
    return rgb


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) if it is missing or unreadable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above
        return 1
    return value if isinstance(value, int) and value in range(1, 9) else 1


def decode_rgb(data: bytes) -> Image.Image:
    """Decode to RGB, without EXIF orientation: annotations refer to the stored pixels.

    Only of a TIFF Pillow always applies it.

    Raises:
        DataError: it cannot be decoded or converted by :func:`to_rgb`.
    """
    return to_rgb(open_image(data))


def check_stored(data: bytes) -> tuple[int, int]:
    """Check that a sample can hold an image file of a data set; returns its height and width.

    Raises:
        DataError: :func:`open_image` or :func:`to_rgb` rejects it, or it has several pictures.
    """
    image = open_image(data, draft=True)
    to_rgb(image)
    if image.format != "MPO" and getattr(image, "is_animated", False):  # MPO: the first JPEG is the image
        raise DataError(f"is a {image.format} file of several pictures; save the one that is annotated")
    whole = read_header(data) if image.format in ("JPEG", "MPO") else image  # loading turns a TIFF
    return whole.height, whole.width


def pack_image(data: bytes) -> tuple[str, bytes]:
    """Suffix and content of an image in a shard: JPEG and PNG unchanged, other formats as a PNG in RGB."""
    if data.startswith(_JPEG):
        return "jpg", data
    return "png", data if data.startswith(_PNG) else encode_png(decode_rgb(data))


def encode_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def resize_image(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bilinear with antialiasing; ``size`` is height, width."""
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
