"""Label maps: segment ids and class indices of pixels, as PNG files and as arrays. Imports no torch."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from odise_pl.data.images import encode_png, open_image, read_header
from odise_pl.data.records import DataError

_Int = TypeVar("_Int", bound=np.integer)
_NO_CLASS = {"L": 255, "P": 255, "I;16": 65535, "I": 65535}  # in a class map, by Pillow's mode
_BAND = 64  # rows
_STEPS = {"L;2": 85, "L;4": 17}  # between grey values of 2 and 4 bits, which Pillow spreads over 8


def decode_ids(data: bytes) -> NDArray[np.int32]:
    """Decode the segment ids of a panoptic PNG, int32 [H, W]: R + 256 G + 65536 B, 0 for void.

    Raises:
        DataError: it cannot be decoded or is not an RGB PNG of 8 bits.
    """
    image = open_image(data)
    if image.format != "PNG" or image.mode != "RGB" or _raw_mode(data) != "RGB":
        raise DataError(f"is a {image.format} of mode {image.mode}; a panoptic map is an RGB PNG of 8 bits")
    # Pillow stores RGB in four bytes per pixel: read them as one little-endian integer without the last byte.
    # It copies an image several times on its way out, in memory that is new each time: small bands reuse it.
    values = np.empty((image.height, image.width), dtype="<i4")
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        values[top : top + _BAND] = np.frombuffer(band.tobytes("raw", "RGBX"), "<i4").reshape(band.height, -1)
    values &= 0xFFFFFF
    return values.astype(np.int32, copy=False)


def encode_ids(ids: NDArray[np.int32]) -> bytes:
    """The inverse of :func:`decode_ids`."""
    channels = np.ascontiguousarray(ids, dtype="<i4").view(np.uint8).reshape(*ids.shape, 4)
    return encode_png(Image.fromarray(channels[..., :3]))


def unique_ids(ids: NDArray[_Int]) -> NDArray[_Int]:
    """The sorted values of a map; faster than ``np.unique``, because segments are runs of pixels."""
    flat = ids.ravel()
    return np.unique(np.concatenate([flat[:1], flat[_changes(flat)]]))


def renumber(ids: NDArray[np.integer], values: NDArray[np.int64]) -> NDArray[np.integer]:
    """The index in sorted ``values``, which have every id, of each pixel; in one byte if that is enough."""
    flat = ids.ravel()
    edges = np.concatenate([[0], _changes(flat), [flat.size]])
    kind = np.uint8 if len(values) <= 256 else np.int32
    numbers = np.searchsorted(values, flat[edges[:-1]]).astype(kind)
    return np.repeat(numbers, np.diff(edges)).reshape(ids.shape)


def _changes(flat: NDArray[np.integer]) -> NDArray[np.intp]:
    """Where runs of one value begin, without the first."""
    return np.flatnonzero(flat[1:] != flat[:-1]) + 1


def decode_values(data: bytes) -> NDArray[np.int32]:
    """Decode a label image to its stored values, e.g. palette indices: int32 [H, W] or [H, W, channels].

    Raises:
        DataError: it cannot be decoded or has colours of 16 bits.
    """
    values, raw = np.array(open_image(data), dtype=np.int32), _raw_mode(data)
    if values.ndim == 3 and "16" in raw:
        raise DataError("has colours of 16 bits per channel; a label image has channels of 8")
    return values // _STEPS.get(raw, 1)


def _raw_mode(data: bytes) -> str:
    """Pillow's name of the pixel format in the file; empty if it has none."""
    tiles = read_header(data).tile
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) else args)


def decode_semantic(data: bytes) -> NDArray[np.int32]:
    """Decode a class map, int32 [H, W], -1 for no class, from a grey PNG.

    The values are class indices; 255 in 8 bits and 65535 in 16 bits mean no class.

    Raises:
        DataError: it cannot be decoded or is not a grey PNG.
    """
    image = open_image(data)
    nothing = _NO_CLASS.get(image.mode)
    if image.format != "PNG" or nothing is None:
        raise DataError(f"is a {image.format} of mode {image.mode}; a semantic map is a grey PNG")
    values = decode_values(data)
    values[values == nothing] = -1
    return values


def encode_semantic(classes: NDArray[np.integer]) -> bytes:
    """The inverse of :func:`decode_semantic`, in 16 bits."""
    return encode_png(Image.fromarray(np.where(classes < 0, 65535, classes).astype(np.uint16)))


def resize_ids(
    ids: NDArray[_Int], size: tuple[int, int], box: tuple[int, int, int, int] | None = None
) -> NDArray[_Int]:
    """Nearest pixel centre; ``size`` is height, width; ``box``: the part left, top, right, bottom of it."""
    left, top, right, bottom = box or (0, 0, size[1], size[0])
    rows, columns = (_nearest(old, new) for old, new in zip(ids.shape, size, strict=True))
    return ids.take(columns[left:right], axis=1).take(rows[top:bottom], axis=0)


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    # floor((i + 1/2) * old / new) in integers: exact where a centre is on the border of two pixels.
    return (2 * np.arange(new) + 1) * old // (2 * new)
