"""How CLIP embeds the masks of images: three ways, each a function.

Each maps a frozen CLIP and :class:`Regions` to embeddings [B, Q, D], not normalised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.classifiers.text import at_least_float32
from odise_pl.models.ops.pooling import masked_mean
from odise_pl.structures import Size

_CROPS = 32  # in a pass through CLIP


@dataclass(frozen=True)
class Regions:
    """Masks of a batch of images.

    Attributes:
        images: [B, 3, H, W] in 0..1.
        views: size of each image without padding.
        masks: logits [B, Q, h, w] of the whole canvas.
        mask_views: the part of the canvas that each image's masks are taken from; its size without padding.
        crop_threshold: probability from which a pixel belongs to a cropped mask; 0.5 in the other ways.
        clip_map: [B, C, H / 32, W / 32], last map of a convolutional CLIP if the backbone has computed it.
    """

    images: Tensor
    views: Sequence[Size]
    masks: Tensor
    mask_views: Sequence[Size]
    crop_threshold: float = 0.5
    clip_map: Tensor | None = None


def masked_clip(clip: FrozenCLIP, regions: Regions) -> Tensor:
    """One pass over the image, with a class token for each mask (section 3.5 of the paper; MaskCLIP).

    Images and masks are squashed to CLIP's square.
    """
    size, canvas = clip.image_size, regions.images.shape[-2:]
    squashed = [
        resize_to_square(image[None, :, :h, :w], (1.0, 1.0), size)
        for image, (h, w) in zip(regions.images, regions.views, strict=True)
    ]
    masks = [
        resize_to_square(mask[None], (h / canvas[0], w / canvas[1]), size)
        for mask, (h, w) in zip(regions.masks, regions.mask_views, strict=True)
    ]
    visible = visible_patches(torch.cat(masks), clip.patch_size)
    return clip.encode_masks(clip.normalize(torch.cat(squashed)), visible)


def cropped_clip(clip: FrozenCLIP, regions: Regions) -> Tensor:
    """One pass per mask over its box, squashed to CLIP's square (SimBaseline, arXiv 2112.14757).

    Pixels outside the mask have CLIP's mean colour. An empty mask shows the whole image.
    """
    return torch.stack(
        [
            _crops_of_image(clip, image[:, :h, :w], mask, regions.images.shape[-2:], regions.crop_threshold)
            for image, mask, (h, w) in zip(regions.images, regions.masks, regions.views, strict=True)
        ]
    )


def _crops_of_image(
    clip: FrozenCLIP, image: Tensor, logits: Tensor, canvas: Sequence[int], threshold: float
) -> Tensor:
    """Embeddings [Q, D] of one image [3, H, W] with logits [Q, h, w] of its canvas."""
    height, width = image.shape[1:]
    pixels = clip.normalize(image[None])[0]
    found = []
    for chunk in logits.split(_CROPS):
        full = F.interpolate(chunk[None].float(), tuple(canvas), mode="bilinear", align_corners=False)[0]
        inside = full[:, :height, :width].sigmoid() > threshold
        found.append(clip.encode_normalized(crop_masks(pixels, inside, clip.image_size)))
    return torch.cat(found)


def crop_masks(image: Tensor, masks: Tensor, size: int) -> Tensor:
    """The boxes of masks, 0 outside of the mask, resized (bicubic) to squares.

    Args:
        image: [C, H, W].
        masks: bool [Q, H, W]; the whole image where one is empty.
        size: side of the results.

    Returns:
        [Q, C, size, size].
    """
    masks = masks | ~masks.flatten(1).any(1)[:, None, None]
    shown = image * masks[:, None]
    narrow = _resize_extent(shown.mT, masks.any(2), size).mT
    return _resize_extent(narrow, masks.any(1), size)


def _resize_extent(maps: Tensor, inside: Tensor, size: int) -> Tensor:
    """Resize rows of maps [Q, C, H, W] from the first to the last place inside, bool [Q, W]: [Q, C, H, size].

    As ``F.interpolate``, but extents differ, and need not be known on the host.
    """
    places = torch.arange(inside.shape[1], device=inside.device)
    first = places.where(inside, places[-1]).amin(1)[:, None, None, None]
    last = places.where(inside, places[0]).amax(1)[:, None, None, None]
    centres = (torch.arange(size, device=maps.device) + 0.5) * ((last - first + 1) / size) - 0.5
    resized = maps.new_zeros(*maps.shape[:3], size)
    for offset in range(-1, 3):
        near = centres.floor() + offset
        place = (first + near.long()).clamp(first, last).expand(-1, *maps.shape[1:3], -1)
        resized = resized + _cubic((centres - near).abs()) * maps.gather(-1, place)
    return resized


def _cubic(distance: Tensor) -> Tensor:
    """Weight of a value at a distance of 0 to 2, as in PyTorch's bicubic interpolation."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    return torch.where(distance <= 1, near, far)


def pooled_clip(clip: FrozenCLIP, regions: Regions) -> Tensor:
    """Mean feature of a convolutional CLIP under each mask, then CLIP's head (FC-CLIP, arXiv 2308.02487)."""
    features = regions.clip_map
    if features is None:
        features = clip.maps(regions.images)[-1]
    size = (features.shape[2], features.shape[3])
    masks = F.interpolate(regions.masks, size, mode="bilinear", align_corners=False) > 0
    return clip.encode_pooled(masked_mean(features, masks))


REGIONS: dict[str, Callable[[FrozenCLIP, Regions], Tensor]] = {
    "masked": masked_clip,
    "cropped": cropped_clip,
    "pooled": pooled_clip,
}


def resize_to_square(maps: Tensor, view: tuple[float, float], size: int) -> Tensor:
    """Crop the top left part of maps and resize it (bilinear) to a square.

    Args:
        maps: [B, C, h, w].
        view: fraction of height and width to keep.
        size: side of the result.

    Returns:
        [B, C, size, size], in float32 or better.
    """
    maps = at_least_float32(maps)  # coordinates take the precision of the maps
    if view == (1.0, 1.0):
        return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)
    high, wide = view
    # cell centres in the coordinates of grid_sample, -1..1 over the whole map
    centres = (torch.arange(size, device=maps.device, dtype=maps.dtype) + 0.5) / size
    y, x = torch.meshgrid(2 * high * centres - 1, 2 * wide * centres - 1, indexing="ij")
    grid = torch.stack([x, y], dim=-1).expand(len(maps), -1, -1, -1)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


def visible_patches(mask_logits: Tensor, patch: int) -> Tensor:
    """Patches of CLIP's square input with a mask pixel: [B, Q, S, S] to bool [B, Q, (S / patch) ** 2]."""
    return (F.max_pool2d(mask_logits.sigmoid(), patch) >= 0.5).flatten(2)
