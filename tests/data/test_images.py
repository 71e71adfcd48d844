"""Images of all modes, depths and orientations."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from odise_pl.data.images import (
    FORMATS,
    IMAGE_SUFFIXES,
    decode_rgb,
    open_stored,
    pack_image,
    read_image,
    to_rgb,
    to_upright_rgb,
)
from odise_pl.data.label_maps import decode_ids, decode_semantic, decode_values
from odise_pl.data.records import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG with colours of 16 bits per channel, which Pillow cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return png(*parts)


def png(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_tiff(values: np.ndarray, **changes: int) -> bytes:
    """An uncompressed little-endian TIFF that Pillow cannot write; ``changes`` sets tags, as ``t258=16``."""
    height, width, channels = values.shape
    bits = values.dtype.itemsize * 8
    numbers = {256: width, 257: height, 258: bits, 259: 1, 262: 2, 273: 256, 277: channels, 278: height}
    numbers |= {279: values.nbytes, 284: 1} | {int(tag[1:]): value for tag, value in changes.items()}
    tags = [(tag, 4, 1, value) for tag, value in sorted(numbers.items())]
    if channels > 2:
        tags[2] = (258, 3, channels, 200)  # where there is one for each channel
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head.ljust(200, b"\0") + struct.pack("<HHHH", *[bits] * 4).ljust(56, b"\0") + values.tobytes()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("high", "shift"), [(255, 0), (256, 2), (1023, 2), (4095, 4), (16383, 6), (16384, 8), (65535, 8)]
)
def test_16_bit_grey_is_scaled_by_its_range(high: int, shift: int, tmp_path: Path) -> None:
    values = np.linspace(0, high, 24).astype(np.uint16).reshape(4, 6)
    expected = np.repeat((values >> shift)[..., None], 3, axis=-1)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "grey.tif")
    for name in ("grey.png", "grey.tif"):
        content = (tmp_path / name).read_bytes()
        for image in (
            read_image(tmp_path / name),
            decode_rgb(content),
            decode_rgb(pack_image(content)[1]),
            to_upright_rgb(Image.open(tmp_path / name)),
        ):
            np.testing.assert_array_equal(np.asarray(image), expected)
    for array in (values.astype(">u2"), values.astype(np.int32)):
        np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(array))), expected)


@pytest.mark.parametrize(("high", "shift"), [(255, 0), (1023, 2), (4095, 4), (65535, 8)])
@pytest.mark.parametrize("encode", [deep_png, deep_tiff])
def test_16_bit_colours_are_scaled_like_grey(
    encode: Callable[..., bytes], high: int, shift: int, tmp_path: Path
) -> None:
    values = np.linspace(0, high, 72).astype(np.uint16).reshape(4, 6, 3)
    path = tmp_path / "deep"
    path.write_bytes(encode(values))
    packed = decode_rgb(pack_image(path.read_bytes())[1])
    for image in (read_image(path), decode_rgb(path.read_bytes()), packed, to_upright_rgb(Image.open(path))):
        np.testing.assert_array_equal(np.asarray(image), values >> shift)


DEEP = np.full((4, 6, 4), 4095, np.uint16)
MISREAD = {
    "LA": deep_png(DEEP[..., :2]),
    "RGBX": deep_tiff(DEEP, t338=0),
    "RGBa": deep_tiff(DEEP, t338=1),
    "CMYK": deep_tiff(DEEP, t262=5),
    "planes": deep_tiff(DEEP[..., :3], t284=2),
    "0 is white": deep_tiff(DEEP[..., :1], t262=0),
    "int8": deep_tiff(np.full((4, 6, 1), -9, np.int8), t262=1, t339=2),
    "above 65535": deep_tiff(np.full((2, 2, 1), 2**31 + 5, np.uint32), t262=1),
}


@pytest.mark.parametrize("form", MISREAD)
def test_misread_pixels_are_rejected(form: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(MISREAD[form])
    loaded = Image.open(path)
    loaded.load()
    for read in (
        lambda: read_image(path),
        lambda: open_stored(path.read_bytes()),
        lambda: to_upright_rgb(Image.open(path)),
        lambda: to_upright_rgb(loaded),
    ):
        with pytest.raises(DataError, match=form):
            read()


@pytest.mark.parametrize("encode", [deep_png, deep_tiff])
def test_loaded_16_bit_image_is_rejected(encode: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "deep"
    path.write_bytes(encode(DEEP[..., :3]))
    loaded = Image.open(path)
    loaded.load()
    with pytest.raises(DataError, match="deep"):
        to_upright_rgb(loaded)


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_other_formats_are_rejected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    content = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(DataError, match="JPEG, PNG"):
        open_stored(content)


def test_image_suffixes_match_formats() -> None:
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert set(IMAGE_SUFFIXES) == known


@pytest.mark.parametrize(("bits", "colour"), [(2, 0), (4, 0), (4, 3), (8, 3)])
def test_label_values_are_decoded_as_stored(bits: int, colour: int) -> None:
    values = np.array([[0, 1, 2, 3]])
    row = {2: b"\x1b", 4: b"\x01\x23", 8: b"\0\1\2\3"}[bits]
    palette = [(b"PLTE", bytes(12))] if colour else []
    header = struct.pack(">IIBBBBB", 4, 1, bits, colour, 0, 0, 0)
    content = png((b"IHDR", header), *palette, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    np.testing.assert_array_equal(decode_values(content), values)
    np.testing.assert_array_equal(decode_semantic(content), values)


def test_16_bit_labels_are_rejected() -> None:
    for decode in (decode_values, decode_ids):
        with pytest.raises(DataError, match=r"16 bits|of 8"):
            decode(deep_png(DEEP[..., :3]))


def test_16_bit_transparency_becomes_white() -> None:
    alpha = np.repeat([[0, 65535, 65535]], 2, axis=0)[..., None]
    values = np.concatenate([np.full((2, 3, 3), 4095), alpha], axis=-1)
    values[:, 2, :3] = 2048
    assert np.asarray(decode_rgb(deep_png(values)))[0, :, 0].tolist() == [255, 255, 128]
    grey = Image.fromarray(np.array([[7, 65535, 300]], np.uint16))
    content = encoded(grey, "PNG", transparency=300)
    assert np.asarray(decode_rgb(content))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    "image",
    [
        *(Image.fromarray(np.array([v], np.int32)) for v in ([-1, 200], [0, 65536], [0, 2**31 - 1])),
        Image.fromarray(np.ones((2, 2), np.float32)),
        Image.new("La", (2, 2)),
    ],
    ids=lambda image: f"{image.mode} {image.getextrema()}",
)
def test_unknown_range_or_mode_is_rejected(image: Image.Image) -> None:
    with pytest.raises(DataError, match=r"values|floats|mode La"):
        to_rgb(image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "P", "RGBA", "CMYK", "LAB"])
def test_other_modes_are_converted_as_by_pillow(mode: str) -> None:
    image = Image.fromarray(NOISE).convert("LAB" if mode == "LAB" else mode)
    shown = image.convert("RGBA") if mode in ("LA", "PA") else image
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(shown.convert("RGB")))


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    packed = (struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(packed) + bytes(4)


TURNED = (0x112, 3, 1, b"\6\0")
MALFORMED = {
    "letter": (exif((0x112, 2, 2, b"A")), 1),
    "nine": (exif((0x112, 3, 1, b"\x09\0")), 1),
    "float": (exif((0x112, 11, 1, struct.pack("<f", 6))), 1),
    "text for a ratio": (exif(TURNED, (0x11A, 2, 3, b"72")), 6),
    "missing block": (exif(TURNED, (0x8769, 4, 1, b"\xff\xff\0\0")), 6),
    "short": (b"Exif\0\0II", 1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("which", MALFORMED)
def test_malformed_exif_is_ignored(kind: str, which: str) -> None:
    block, turned = MALFORMED[which]
    content = encoded(Image.fromarray(NOISE), kind, exif=block)
    assert to_upright_rgb(Image.open(io.BytesIO(content))).size == ((4, 6) if turned == 6 else (6, 4))
    assert open_stored(content).size == (6, 4)
    assert decode_rgb(pack_image(content)[1]).size == (6, 4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, turned: int, tmp_path: Path) -> None:
    """Pillow already turns a TIFF when it reads the pixels."""
    right = Image.fromarray(NOISE)
    undo = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: Image.Transpose.ROTATE_180}
    undo |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    undo |= {5: Image.Transpose.TRANSPOSE, 7: Image.Transpose.TRANSVERSE}
    stored = right.transpose(undo[turned]) if turned in undo else right
    block = Image.Exif()
    block[0x112] = turned
    path = tmp_path / "phone"
    path.write_bytes(encoded(stored, kind, exif=block))
    loaded = Image.open(path)
    loaded.load()
    for image in (
        read_image(path),
        to_upright_rgb(Image.open(path)),
        to_upright_rgb(loaded),
        to_upright_rgb(read_image(path)),
    ):
        np.testing.assert_array_equal(np.asarray(image), NOISE)
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(open_stored(path.read_bytes())), np.asarray(stored))
    elif turned != 1:
        with pytest.raises(DataError, match=f"orientation {turned}"):
            open_stored(path.read_bytes())


@pytest.mark.parametrize(
    ("kind", "options", "suffix"),
    [
        ("JPEG", {}, "jpg"),
        ("PNG", {}, "png"),
        ("WEBP", {"lossless": True}, "png"),
        ("TIFF", {"compression": "tiff_lzw"}, "png"),
        ("BMP", {}, "png"),
    ],
)
def test_images_are_packed_losslessly(kind: str, options: dict[str, object], suffix: str) -> None:
    content = encoded(Image.fromarray(NOISE), kind, **options)
    name, packed = pack_image(content)
    assert name == suffix
    assert (packed == content) == (kind in ("JPEG", "PNG"))
    np.testing.assert_array_equal(np.asarray(decode_rgb(packed)), np.asarray(decode_rgb(content)))


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "GIF", "PNG"])
def test_file_with_several_pictures_is_rejected(kind: str) -> None:
    pictures = [Image.fromarray(NOISE + shift) for shift in (0, 9)]
    content = encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])
    with pytest.raises(DataError, match="several pictures"):
        open_stored(content)
