"""CLIP's embeddings of masks against loops over masks and pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import open_clip
import pytest
import tiny_models
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.clip import CLIPArchitecture, FrozenCLIP, build_clip
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.classifiers.regions import Regions, crop_masks, cropped_clip, pooled_clip
from odise_pl.runs.conf import compose_config

VIEWS = [(50, 64), (64, 40)]


@cache
def conv_clip() -> FrozenCLIP:
    torch.manual_seed(0)
    return FrozenCLIP(build_clip(tiny_models.CONV_CLIP))


def regions(masks: Tensor) -> Regions:
    """Two images on a canvas of 64 x 64, with the same masks."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Regions(images, VIEWS, masks.expand(2, -1, -1, -1), VIEWS)


def random_masks() -> Tensor:
    """Four logits of 16 x 16; the third is empty."""
    masks = F.interpolate(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)), (16, 16))
    masks[:, 2] = -9
    return 3 * masks


@pytest.mark.parametrize("threshold", [0.5, 0.8])
@torch.no_grad()
def test_crops_equal_loop(threshold: float) -> None:
    clip, given = tiny_models.clip(), replace(regions(random_masks()), crop_threshold=threshold)
    found = cropped_clip(clip, given)
    size = clip.image_size
    for image, masks, (height, width), embeddings in zip(
        given.images, given.masks, VIEWS, found, strict=True
    ):
        full = F.interpolate(masks[None], (64, 64), mode="bilinear")[0, :, :height, :width].sigmoid()
        for mask, embedding in zip(full, embeddings, strict=True):
            inside = [(y, x) for y in range(height) for x in range(width) if mask[y, x] > threshold]
            picture = torch.zeros(3, height, width)
            for y, x in inside or [(y, x) for y in range(height) for x in range(width)]:
                picture[:, y, x] = clip.normalize(image[None, :, y : y + 1, x : x + 1])[0, :, 0, 0]
            ys, xs = ([p[i] for p in inside] or [0, end] for i, end in ((0, height - 1), (1, width - 1)))
            box = picture[:, min(ys) : max(ys) + 1, min(xs) : max(xs) + 1]
            square = F.interpolate(box[None], (size, size), mode="bicubic")
            torch.testing.assert_close(embedding, clip.model.encode_image(square)[0], rtol=1e-3, atol=1e-4)


def test_crop_of_one_pixel_fills_the_square() -> None:
    image, mask = torch.rand(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[2, 5] = True
    (crop,) = crop_masks(image, mask[None], 4)
    torch.testing.assert_close(crop, image[:, 2, 5, None, None].expand(3, 4, 4))


@torch.no_grad()
def test_pooled_embeddings_equal_loop() -> None:
    clip, given = conv_clip(), regions(random_masks())
    found = pooled_clip(clip, given)
    trunk, head = clip.model.visual.trunk, clip.model.visual.head
    features = trunk.forward_features(clip.normalize(given.images))
    masks = F.interpolate(given.masks, features.shape[-2:], mode="bilinear")
    for maps, logits, embeddings in zip(features, masks, found, strict=True):
        for mask, embedding in zip(logits, embeddings, strict=True):
            cells = [maps[:, y, x] for y in range(2) for x in range(2) if mask[y, x] > 0]
            mean = torch.stack(cells).mean(0) if cells else torch.zeros(len(maps))
            expected = head(trunk.head.norm(mean[None, :, None, None]).flatten(1))[0]
            torch.testing.assert_close(embedding, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_mask_of_everything_is_clips_own_embedding() -> None:
    clip, whole = conv_clip(), regions(torch.full((1, 1, 16, 16), 9.0))
    expected = clip.model.encode_image(clip.normalize(whole.images))
    torch.testing.assert_close(pooled_clip(clip, whole)[:, 0], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_backbone_and_classifier_share_one_pass() -> None:
    network, images, sizes = tiny_models.fc_clip(), torch.rand(2, 3, 64, 128), [(64, 128), (50, 100)]
    output = network.decode(images)[-1]
    assert output.clip_map is not None
    vocabulary = tiny_models.vocabulary(("dog",), ("sky", "clouds"))
    classes = network.prepare(vocabulary, None)
    once = network.classify(output, images, sizes, classes)
    twice = network.classify(replace(output, clip_map=None), images, sizes, classes)
    torch.testing.assert_close(once, twice)
    # without projections, names and masks meet in CLIP's own space
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not [name for name in trained if name.startswith(("backbone", "clip", "text_projection.proj"))]


def test_regions_must_fit_the_kind_of_clip() -> None:
    with pytest.raises(ValueError, match=r"fusion\.regions=masked"):
        tiny_models.fc_clip("masked")
    with pytest.raises(ValueError, match=r"fusion\.regions=pooled"):
        tiny_models.odise(classifier=ClassifierSettings(regions="pooled"))


@pytest.mark.parametrize(
    ("choice", "name", "millions"),
    [
        ("convnext_l_320", "convnext_large_d_320", 351.8),
        ("vit_b16", "ViT-B-16-quickgelu", 149.6),
        ("vit_b32", "ViT-B-32-quickgelu", 151.3),
    ],
)
def test_clips_have_the_shapes_of_open_clips(choice: str, name: str, millions: float) -> None:
    config = compose_config("train", ["run_dir=.", f"clip={choice}"]).clip.architecture
    sizes = {name: value for name, value in config.items() if name != "_target_"}
    with torch.device("meta"):
        ours = build_clip(CLIPArchitecture(**sizes))
        theirs = open_clip.create_model(name, device="meta")
    shapes = [{name: tuple(x.shape) for name, x in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(x.numel() for x in ours.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
