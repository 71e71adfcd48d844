from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from odise_pl.models.inference import (
    InferenceSettings,
    instances,
    panoptic,
    predict,
    resize_masks,
    semantic_map,
)
from odise_pl.models.ops import bands
from odise_pl.structures import Prediction
from tests.parity.results import semantic_scores


@dataclass(frozen=True)
class Case:
    class_logits: Tensor
    mask_logits: Tensor
    isthing: tuple[bool, ...]
    settings: InferenceSettings


@st.composite
def cases(draw: st.DrawFn) -> Case:
    queries, classes = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    sharpness = draw(st.sampled_from([0.3, 3.0]))
    return Case(
        sharpness * torch.randn(queries, classes + 1, generator=generator, dtype=torch.float64),
        4 * torch.randn(queries, height, width, generator=generator, dtype=torch.float64)
        + draw(st.sampled_from([-4.0, 0.0, 3.0])),
        tuple(draw(st.lists(st.booleans(), min_size=classes, max_size=classes))),
        InferenceSettings(
            draw(st.sampled_from([0.0, 0.4, 0.8])),
            draw(st.sampled_from([0.0, 0.5, 0.8])),
            draw(st.integers(1, 9)),
        ),
    )


def softmax(logits: Tensor) -> list[float]:
    values = [math.exp(float(x) - float(logits.max())) for x in logits]
    return [value / sum(values) for value in values]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def literal_panoptic(case: Case) -> tuple[list[list[int]], list[tuple[int, int, bool, float]]]:
    """Mask2Former's post-processing pixel by pixel: ids, and (id, class, isthing, score) of the segments."""
    queries, height, width = case.mask_logits.shape
    void = len(case.isthing)
    kept = []
    for q in range(queries):
        p = softmax(case.class_logits[q])
        label = p.index(max(p))
        if label != void and max(p) > case.settings.object_threshold:
            kept.append((q, label, max(p)))
    ids = [[0] * width for _ in range(height)]
    if not kept:
        return ids, []
    mask = [[[sigmoid(float(case.mask_logits[q, y, x])) for x in range(width)] for y in range(height)]
            for q, _, _ in kept]  # fmt: skip
    pixels = [(y, x) for y in range(height) for x in range(width)]
    owner = {(y, x): max(range(len(kept)), key=lambda k: kept[k][2] * mask[k][y][x]) for y, x in pixels}
    segments: list[tuple[int, int, bool, float]] = []
    stuff: dict[int, int] = {}
    for k, (_, label, score) in enumerate(kept):
        won = [p for p in pixels if owner[p] == k]
        claimed = [p for p in pixels if mask[k][p[0]][p[1]] >= 0.5]
        shown = [p for p in won if p in claimed]
        if not won or not claimed or not shown or len(won) / len(claimed) < case.settings.overlap_threshold:
            continue
        if not case.isthing[label] and label in stuff:
            number = stuff[label]
        else:
            number = len(segments) + 1
            segments.append((number, label, case.isthing[label], score))
            if not case.isthing[label]:
                stuff[label] = number
        for y, x in shown:
            ids[y][x] = number
    return ids, segments


@given(cases())
def test_panoptic_equals_loop_over_pixels(case: Case) -> None:
    result = panoptic(case.class_logits, case.mask_logits, case.isthing, case.settings)
    ids, segments = literal_panoptic(case)
    assert result.ids.dtype == torch.int32
    assert result.ids.tolist() == ids
    assert [(s.id, s.category, s.isthing) for s in result.segments] == [s[:3] for s in segments]
    assert [s.score for s in result.segments] == pytest.approx([s[3] for s in segments], rel=1e-4)
    assert not any(s.iscrowd for s in result.segments)


@given(cases())
def test_instances_equal_loop(case: Case) -> None:
    result = instances(case.class_logits, case.mask_logits, case.isthing, case.settings)
    pairs = []
    for q in range(len(case.class_logits)):
        for k, p in enumerate(softmax(case.class_logits[q])[:-1]):
            pairs.append((p, q, k))
    pairs.sort(reverse=True)
    expected = []
    for p, q, k in pairs[: case.settings.top_k]:
        if case.isthing[k]:
            inside = [sigmoid(float(x)) for x in case.mask_logits[q].flatten() if x > 0]
            expected.append((p * sum(inside) / (len(inside) + 1e-6), k, case.mask_logits[q] > 0))
    order = result.scores.argsort(descending=True).tolist()
    expected.sort(key=lambda e: e[0], reverse=True)
    assert [result.scores[i].item() for i in order] == pytest.approx(
        [e[0] for e in expected], rel=1e-4, abs=1e-7
    )
    found = sorted((int(result.labels[i]), result.masks[i].tolist()) for i in order)
    assert found == sorted((k, mask.tolist()) for _, k, mask in expected)


@given(cases())
def test_semantic_map_is_argmax_of_scores(case: Case) -> None:
    scores = semantic_scores(case.class_logits, case.mask_logits)
    for k in range(len(case.isthing)):
        shares = [softmax(row)[k] for row in case.class_logits]
        expected = sum(share * mask.sigmoid() for share, mask in zip(shares, case.mask_logits, strict=True))
        torch.testing.assert_close(scores[k], expected, rtol=1e-4, atol=1e-6)
    best = semantic_map(case.class_logits, case.mask_logits)
    assert best.dtype == torch.int64
    winning = scores.gather(0, best[None])[0]
    # rounding may decide ties either way
    torch.testing.assert_close(winning, scores.max(0).values)


def test_first_class_wins_ties() -> None:
    assert semantic_map(torch.zeros(2, 6), torch.ones(2, 3, 3)).eq(0).all()


def test_no_object_gives_void_and_no_instances() -> None:
    sure_of_nothing = torch.tensor([[0.0, 0.0, 9.0]]).repeat(4, 1)
    sizes = ((32, 32), (20, 30), (40, 60))
    result = predict(sure_of_nothing, torch.randn(4, 8, 8), (False, False), InferenceSettings(), *sizes)
    assert result.panoptic.segments == ()
    assert torch.equal(result.panoptic.ids, torch.zeros(40, 60, dtype=torch.int32))
    assert len(result.instances.labels) == len(result.instances.scores) == len(result.instances.masks) == 0
    assert result.instances.masks.shape == (0, 40, 60)
    assert result.semantic.shape == (40, 60)


def test_resized_masks_ignore_padding() -> None:
    masks = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
    masks[:, 5:], masks[:, :, 12:] = 1000, 1000
    resized = resize_masks(masks, (32, 64), (16, 40), (24, 60))
    assert resized.shape == (3, 24, 60)
    assert resized.abs().max() < 10
    full = F.interpolate(masks[None], (32, 64), mode="bilinear")
    expected = F.interpolate(full[:, :, :16, :40], (24, 60), mode="bilinear")[0]
    torch.testing.assert_close(resized, expected)


@pytest.mark.parametrize(
    ("setting", "value"), [("object_threshold", -0.1), ("overlap_threshold", 1.5), ("top_k", 0)]
)
def test_invalid_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"inference\.{setting}={value}"):
        InferenceSettings(**{setting: value})


def large_case(classes: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, list[bool]]:
    """Class logits, masks of a canvas of 128 x 192 with regions of several cells, and which are things."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 8 * torch.randn(1, queries, 8, 12, generator=generator)
    masks = F.interpolate(coarse, (32, 48), mode="bicubic")[0]
    logits = 3 * torch.randn(queries, classes + 1, generator=generator)
    return logits, masks, [bool(k % 2) for k in range(classes)]


@pytest.mark.parametrize(("classes", "output"), [(9, (400, 520)), (300, (97, 131))])
def test_bands_equal_whole_masks(
    classes: int, output: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((128, 192), (120, 171), output)
    for seed, thresholds in enumerate([(0.0, 0.0), (0.3, 0.5)]):
        logits, masks, isthing = large_case(classes, 12, seed)
        found = []
        for small, pixels in ((0, 1 << 13), (1 << 40, 1 << 40)):
            monkeypatch.setattr("odise_pl.models.inference._SMALL", small)
            monkeypatch.setitem(bands._PIXELS, "cpu", pixels)
            result = predict(logits, masks, isthing, InferenceSettings(*thresholds, 40), *sizes)
            found.append(Prediction(result.panoptic, result.instances, result.semantic))
        banded, whole = found
        assert torch.equal(banded.panoptic.ids, whole.panoptic.ids)
        assert banded.panoptic.segments == whole.panoptic.segments
        assert torch.equal(banded.semantic, whole.semantic)
        assert torch.equal(banded.instances.masks, whole.instances.masks)
        torch.testing.assert_close(banded.instances.scores, whole.instances.scores)
        scores = semantic_scores(logits, resize_masks(masks, *sizes))
        torch.testing.assert_close(scores.gather(0, banded.semantic[None])[0], scores.amax(0))


class LargestTensor(TorchDispatchMode):
    """The bytes of the largest tensor that an operation returns."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        found = [leaf.nbytes for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.nbytes = max(self.nbytes, *found, 0)
        return result


@pytest.mark.parametrize(("measure", "bytes_of_a_pixel"), [("panoptic", 4), ("semantic", 8)])
def test_memory_per_pixel_of_large_image(measure: str, bytes_of_a_pixel: int) -> None:
    """Whole masks would take 100 bytes per pixel, scores of 847 classes 3,388."""
    logits, masks, isthing = large_case(847, 25)
    height, width = 1500, 2000
    sizes = ((128, 192), (128, 171), (height, width))
    with LargestTensor() as largest:
        getattr(predict(logits, masks, isthing, InferenceSettings(overlap_threshold=0.0), *sizes), measure)
    assert largest.nbytes <= height * width * bytes_of_a_pixel


def test_best_query_without_a_segment() -> None:
    logits = torch.tensor([[0.2, 0.05, 0.75], [0.1, 0.3, 0.6]]).log()
    sizes = ((32, 32), (32, 32), (9, 9))
    found = predict(logits, -torch.ones(2, 8, 8), [True, True], InferenceSettings(), *sizes)
    assert not found.panoptic.segments
    assert found.best == (1, pytest.approx(0.3))
