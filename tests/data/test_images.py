"""Images of all modes, depths and orientations."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from odise_pl.data.images import (
    check_stored,
    decode_rgb,
    open_image,
    pack_image,
    read_image,
    to_rgb,
    to_upright_rgb,
)
from odise_pl.data.label_maps import decode_ids, decode_semantic, decode_values, encode_ids
from odise_pl.data.records import DataError

NOISE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of [H, W, 3] with 16 bits per channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def png(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("high", "shift"), [(255, 0), (256, 2), (4095, 4), (16384, 8), (65535, 8)])
def test_16_bit_grey_is_scaled_by_its_range(high: int, shift: int) -> None:
    values = np.linspace(0, high, 24).astype(np.uint16).reshape(4, 6)
    expected = np.repeat((values >> shift)[..., None], 3, axis=-1)
    for content in (
        encoded(Image.fromarray(values), "PNG"),
        encoded(Image.fromarray(values.astype(np.int32)), "TIFF"),
    ):
        for image in (decode_rgb(content), decode_rgb(pack_image(content)[1])):
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_16_bit_colours_keep_their_upper_bits() -> None:
    values = np.linspace(0, 65535, 72).astype(np.uint16).reshape(4, 6, 3)
    np.testing.assert_array_equal(np.asarray(decode_rgb(deep_png(values))), values >> 8)


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_other_formats_are_rejected(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    content = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(DataError, match="JPEG, PNG"):
        check_stored(content)


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
            decode(deep_png(np.full((4, 6, 3), 4095, np.uint16)))


def test_transparency_becomes_white() -> None:
    clear = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8))
    assert np.asarray(decode_rgb(encoded(clear, "PNG")))[0, :, 0].tolist() == [255, 9]
    grey = Image.fromarray(np.array([[7, 65535, 300]], np.uint16))
    assert np.asarray(decode_rgb(encoded(grey, "PNG", transparency=300)))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    "image",
    [
        *(Image.fromarray(np.array([v], np.int32)) for v in ([-1, 200], [0, 65536])),
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
    "missing block": (exif(TURNED, (0x8769, 4, 1, b"\xff\xff\0\0")), 6),
    "short": (b"Exif\0\0II", 1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("which", MALFORMED)
def test_malformed_exif_is_ignored(kind: str, which: str) -> None:
    block, turned = MALFORMED[which]
    content = encoded(Image.fromarray(NOISE), kind, exif=block)
    assert to_upright_rgb(Image.open(io.BytesIO(content))).size == ((4, 6) if turned == 6 else (6, 4))
    assert check_stored(content) == (4, 6)
    assert decode_rgb(pack_image(content)[1]).size == (6, 4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("turned", [1, 6, 7])
def test_exif_orientation_is_applied_once(kind: str, turned: int, tmp_path: Path) -> None:
    """Pillow already turns a TIFF when it reads the pixels."""
    block = Image.Exif()
    block[0x112] = turned
    path = tmp_path / "phone"
    path.write_bytes(encoded(Image.fromarray(NOISE), kind, exif=block))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    loaded = Image.open(path)
    loaded.load()
    for image in (read_image(path), to_upright_rgb(loaded), to_upright_rgb(read_image(path))):
        np.testing.assert_array_equal(np.asarray(image), shown)
    assert check_stored(path.read_bytes()) == (shown.shape[:2] if kind == "TIFF" else (4, 6))


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
        check_stored(content)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99])
def test_draft_finds_truncated_jpegs(progressive: bool, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "JPEG", progressive=progressive)
    assert check_stored(content) == (90, 130)
    for draft in (False, True):
        with pytest.raises(DataError, match="truncated"):
            open_image(content[: int(kept * len(content))], draft)


@pytest.mark.parametrize("size", [(1, 1), (64, 3), (150, 70)])
def test_ids_survive_encoding(size: tuple[int, int]) -> None:
    ids = np.random.default_rng(0).integers(0, 1 << 24, size).astype(np.int32)
    decoded = decode_ids(encode_ids(ids))
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, ids)
