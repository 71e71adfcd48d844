from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from odise_pl.data.collate import collate
from odise_pl.structures import PanopticSegmentation, Sample, Segment, Targets, Truth


def sample(height: int, width: int, segments: int = 0, number: int = 0) -> Sample:
    return Sample(
        image=torch.randint(1, 256, (3, height, width), dtype=torch.uint8),
        targets=Targets(torch.arange(segments), torch.ones(segments, height, width, dtype=torch.bool)),
        image_id=number,
        key=f"key{number}",
        original_size=(height * 2, width * 2),
        captions=(f"caption {number}",),
        generated_caption=f"said of {number}",
        truth=Truth(PanopticSegmentation(torch.ones(4, 4, dtype=torch.int32), (Segment(1, 0, True),))),
    )


@pytest.mark.parametrize(
    ("sizes", "canvas"),
    [([(64, 64)], (64, 64)), ([(65, 10)], (128, 64)), ([(100, 70), (30, 200)], (128, 256)), ([], (64, 64))],
)
def test_canvas_is_a_multiple_of_64(sizes: list[tuple[int, int]], canvas: tuple[int, int]) -> None:
    images = collate([sample(*size) for size in sizes]).images
    assert images.shape == (len(sizes), 3, *canvas)
    assert images.dtype == torch.float32


def test_batches_are_padded_right_and_below() -> None:
    samples = [sample(50, 70, 2, 1), sample(80, 30, 0, 2)]
    batch = collate(samples, ["damaged"], number=5)
    assert batch.valid_sizes == ((50, 70), (80, 30))
    for image, (height, width), one, targets in zip(
        batch.images, batch.valid_sizes, samples, batch.targets, strict=True
    ):
        assert torch.equal(image[:, :height, :width], one.image.float() / 255)
        assert image.count_nonzero() == one.image.numel()
        assert targets.masks.shape == (len(one.targets.labels), 128, 128)
        assert torch.equal(targets.masks[:, :height, :width], one.targets.masks)
        assert targets.masks.sum() == one.targets.masks.sum()
        assert torch.equal(targets.labels, one.targets.labels)
    assert (len(batch), batch.image_ids, batch.keys) == (2, (1, 2), ("key1", "key2"))
    assert batch.captions == (("caption 1",), ("caption 2",))
    assert batch.generated_captions == ("said of 1", "said of 2")
    assert batch.original_sizes == ((100, 140), (160, 60))
    assert batch.truths == (samples[0].truth, samples[1].truth)
    assert (batch.skipped, batch.number) == (("damaged",), 5)


def test_images_are_fractions_of_pixels() -> None:
    batch = collate([sample(50, 70)])
    assert batch.to("cpu").pixels.dtype == torch.uint8, "what moves to a device is small"
    assert torch.equal(batch.images, batch.pixels.float() / 255)
    assert batch.images.is_contiguous()
    assert batch.images is batch.images, "made once"
    spoilt = replace(batch, pixels=batch.images * float("nan"))
    assert spoilt.images.isnan().all()
