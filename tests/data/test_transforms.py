from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from odise_pl.data.label_maps import resize_ids
from odise_pl.data.transforms import (
    ColorJitter,
    EvalResize,
    LargeScaleJitter,
    image_tensor,
    make_targets,
    pixel_tensor,
)
from odise_pl.structures import Segment


def scene(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """Blocks of 8 x 8 pixels; the id of a block is its grey value + 1."""
    rows, columns = np.arange(height) // 8, np.arange(width) // 8
    grey = (rows[:, None] * 37 + columns * 11) % 60 * 4
    return Image.fromarray(np.repeat(grey[..., None], 3, -1).astype(np.uint8)), (grey + 1).astype(np.int32)


@given(st.integers(40, 90), st.integers(40, 90), st.integers(0, 10_000))
def test_jitter_keeps_image_and_map_aligned(height: int, width: int, seed: int) -> None:
    image, ids = scene(height, width)
    jitter = LargeScaleJitter(64, (0.8, 2.0))
    changed, changed_ids = jitter(image, ids, np.random.default_rng(seed))
    assert changed.shape == (3, 64, 64)
    assert changed_ids.shape == (64, 64)
    shown = changed[0].numpy().astype(int)
    void = changed_ids == 0
    assert (shown[void] == 128).all()
    # Inside a block of the map the image has the block's grey; only at edges is it interpolated.
    inner = np.zeros_like(void)
    inner[2:-2, 2:-2] = ~void[2:-2, 2:-2]
    for dy in (-2, -1, 0, 1, 2):
        for dx in (-2, -1, 0, 1, 2):
            inner[2:-2, 2:-2] &= changed_ids[2 + dy : 62 + dy, 2 + dx : 62 + dx] == changed_ids[2:-2, 2:-2]
    assert np.abs(shown - (changed_ids - 1))[inner].max(initial=0) <= 1


def test_jitter_flips_half_and_covers_scales() -> None:
    ids = np.ones((32, 64), dtype=np.int32)
    ids[:, 32:] = 2
    image = Image.new("RGB", (64, 32))
    jitter = LargeScaleJitter(64, (0.1, 1.0))
    maps = [jitter(image, ids, np.random.default_rng(seed))[1] for seed in range(300)]
    assert 0.4 < np.mean([m[0, 0] == 2 for m in maps]) < 0.6
    widths, heights = (np.array([(m != 0).any(axis).sum() for m in maps]) for axis in (0, 1))
    assert np.abs(widths - 2 * heights).max() <= 1
    assert all(
        (m[:height, :width] != 0).all() for m, height, width in zip(maps, heights, widths, strict=True)
    )
    assert widths.min() < 10
    assert widths.max() > 60
    assert np.quantile(widths, 0.5) == pytest.approx(64 * 0.55, abs=5)


def test_jitter_crops_anywhere() -> None:
    image, _ = scene(64, 64)
    ids = np.arange(64 * 64, dtype=np.int32).reshape(64, 64) + 1
    corners = {
        int(LargeScaleJitter(32, (2.0, 2.0))(image, ids, np.random.default_rng(seed))[1].min() - 1)
        for seed in range(400)
    }
    rows, columns = {corner // 64 for corner in corners}, {corner % 64 for corner in corners}
    assert rows == columns == set(range(33))


@given(st.integers(30, 90), st.integers(30, 90), st.integers(0, 10_000))
def test_jitter_equals_crop_of_resized_image(height: int, width: int, seed: int) -> None:
    image, ids = scene(height, width)
    jitter = LargeScaleJitter(64, (0.3, 2.0))
    changed, changed_ids = jitter(image, ids, np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    if random.random() < 0.5:
        image, ids = ImageOps.mirror(image), ids[:, ::-1]
    scale = random.uniform(0.3, 2.0) * 64 / max(image.size)
    scaled = round(height * scale), round(width * scale)
    top, left = (round(random.random() * max(side - 64, 0)) for side in scaled)
    whole = np.asarray(image.resize(scaled[::-1], Image.Resampling.BILINEAR))
    kept = np.s_[: min(64, scaled[0]), : min(64, scaled[1])]
    shown = changed.permute(1, 2, 0).numpy()[kept].astype(int)
    assert np.abs(shown - whole[top : top + 64, left : left + 64]).max() <= 2
    np.testing.assert_array_equal(
        changed_ids[kept], resize_ids(ids, scaled)[top : top + 64, left : left + 64]
    )


def test_color_jitter_stays_within_its_strength() -> None:
    image, ids = Image.new("RGB", (20, 10), (120, 80, 40)), np.ones((10, 20), dtype=np.int32)
    jitter = ColorJitter(LargeScaleJitter(32, (0.5, 0.5)), 0.4)
    greys, spreads = [], []
    for seed in range(200):
        changed, changed_ids = jitter(image, ids, np.random.default_rng(seed))
        pixels = changed.permute(1, 2, 0).numpy().astype(int)
        assert (pixels[changed_ids == 0] == 128).all()
        red, green, blue = pixels[changed_ids == 1].mean(0)
        greys.append((0.299 * red + 0.587 * green + 0.114 * blue) / 87.4)  # relative to that of the image
        spreads.append((red - blue) / 80 / greys[-1])
    # in a single colour, brightness decides the grey, and contrast times saturation the distance to it
    assert (min(greys), max(greys)) == pytest.approx((0.6, 1.4), abs=0.04)
    assert 0.33 < min(spreads) < 0.55
    assert 1.6 < max(spreads) < 2.0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (1024, 1365)),
        ((640, 480), (1365, 1024)),
        ((100, 1000), (256, 2560)),
        ((2048, 2048), (1024, 1024)),
        ((1, 9000), (1, 2560)),
    ],
)
def test_eval_resize(size: tuple[int, int], expected: tuple[int, int]) -> None:
    resize = EvalResize(1024, 2560)
    assert resize.size(size) == expected
    image, ids = resize(Image.new("RGB", size[::-1]), np.ones(size, np.int32), np.random.default_rng(0))
    assert image.shape[1:] == ids.shape == expected


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_resize_ids_equals_pil(height: int, width: int, new_height: int, new_width: int) -> None:
    ids = np.random.default_rng(0).integers(0, 2**24, (height, width)).astype(np.int32)
    expected = np.asarray(Image.fromarray(ids).resize((new_width, new_height), Image.Resampling.NEAREST))
    resized = resize_ids(ids, (new_height, new_width))
    # Where a centre falls exactly on the border of two pixels PIL's rounding decides.
    rows, columns = (
        (2 * np.arange(new) + 1) * old % (2 * new) != 0
        for old, new in ((height, new_height), (width, new_width))
    )
    assert resized.shape == expected.shape
    assert (resized == expected)[rows][:, columns].all()


def test_image_tensor() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = image_tensor(pixel_tensor(Image.fromarray(pixels)))
    assert tensor.shape == (3, 5, 7)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.equal(tensor, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


def test_targets_skip_crowds_and_empty_segments() -> None:
    ids = np.zeros((4, 6), dtype=np.int32)
    ids[:2], ids[2, :3], ids[3, 3:] = 9, 70000, 8
    segments = (
        Segment(9, 4, True),
        Segment(70000, 1, False),
        Segment(8, 4, True, iscrowd=True),
        Segment(5, 2, True),
    )
    targets = make_targets(ids[:, ::-1], segments)
    assert targets.labels.tolist() == [4, 1]
    assert targets.masks.dtype == torch.bool
    assert targets.masks.shape == (2, 4, 6)
    assert torch.equal(targets.masks[1], torch.from_numpy((ids[:, ::-1] == 70000).copy()))
    empty = make_targets(np.zeros((4, 6), np.int32), segments)
    assert empty.labels.shape == (0,)
    assert empty.labels.dtype == torch.int64
    assert empty.masks.shape == (0, 4, 6)
    assert empty.masks.dtype == torch.bool
