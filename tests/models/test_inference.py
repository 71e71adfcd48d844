from __future__ import annotations

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
    predict_pixels,
    resize_masks,
    semantic_map,
)
from odise_pl.models.ops import bands
from odise_pl.structures import Prediction
from tests.parity.results import semantic_scores


@dataclass(frozen=True)
class Case:
    class_scores: Tensor
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
        (sharpness * torch.randn(queries, classes + 1, generator=generator, dtype=torch.float64)).softmax(-1),
        4 * torch.randn(queries, height, width, generator=generator, dtype=torch.float64)
        + draw(st.sampled_from([-4.0, 0.0, 3.0])),
        tuple(draw(st.lists(st.booleans(), min_size=classes, max_size=classes))),
        InferenceSettings(
            draw(st.sampled_from([0.0, 0.4, 0.8])),
            draw(st.sampled_from([0.0, 0.5, 0.8])),
            draw(st.integers(1, 9)),
        ),
    )


def literal_panoptic(case: Case) -> tuple[Tensor, list[tuple[int, int, bool, float]]]:
    """Mask2Former's post-processing of whole masks: ids, and (id, class, isthing, score) of the segments."""
    masks, (scores, labels) = case.mask_logits.sigmoid(), case.class_scores.max(-1)
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32)
    kept = [q for q, label in enumerate(labels.tolist()) if label != len(case.isthing)]
    kept = [q for q in kept if scores[q] > case.settings.object_threshold]
    if not kept:
        return ids, []
    owner = (scores[kept, None, None] * masks[kept]).argmax(0)
    segments: list[tuple[int, int, bool, float]] = []
    stuff: dict[int, int] = {}
    for k, q in enumerate(kept):
        won, claimed, label = owner == k, masks[q] >= 0.5, int(labels[q])
        if not (won & claimed).any() or won.sum() / claimed.sum() < case.settings.overlap_threshold:
            continue
        if label not in stuff:
            segments.append((len(segments) + 1, label, case.isthing[label], float(scores[q])))
            if not case.isthing[label]:
                stuff[label] = len(segments)
        ids[won & claimed] = stuff.get(label, len(segments))
    return ids, segments


@given(cases())
def test_panoptic_equals_loop_over_queries(case: Case) -> None:
    result = panoptic(case.class_scores, case.mask_logits, case.isthing, case.settings)
    ids, segments = literal_panoptic(case)
    assert result.ids.dtype == torch.int32
    assert torch.equal(result.ids, ids)
    assert [(s.id, s.category, s.isthing) for s in result.segments] == [s[:3] for s in segments]
    assert [s.score for s in result.segments] == pytest.approx([s[3] for s in segments], rel=1e-4)
    assert not any(s.iscrowd for s in result.segments)


@given(cases())
def test_instances_equal_loop(case: Case) -> None:
    result = instances(case.class_scores, case.mask_logits, case.isthing, case.settings)
    probabilities = case.class_scores[:, :-1].tolist()
    pairs = sorted(
        ((p, q, k) for q, row in enumerate(probabilities) for k, p in enumerate(row)), reverse=True
    )
    expected = []
    for p, q, k in sorted(pairs, reverse=True)[: case.settings.top_k]:
        if case.isthing[k]:
            mask = case.mask_logits[q]
            inside = mask[mask > 0].sigmoid()
            expected.append((p * float(inside.sum() / (len(inside) + 1e-6)), k, (mask > 0).tolist()))
    scores = sorted(score for score, _, _ in expected)
    assert sorted(result.scores.tolist()) == pytest.approx(scores, rel=1e-4, abs=1e-7)
    found = zip(result.labels.tolist(), result.masks.tolist(), strict=True)
    assert sorted(found) == sorted((k, mask) for _, k, mask in expected)


@given(cases())
def test_semantic_map_is_argmax_of_scores(case: Case) -> None:
    scores = semantic_scores(case.class_scores, case.mask_logits)
    best = semantic_map(case.class_scores, case.mask_logits)
    assert best.dtype == torch.int64
    winning = scores.gather(0, best[None])[0]
    # rounding may decide ties either way
    torch.testing.assert_close(winning, scores.max(0).values)


@given(cases(), st.sampled_from([0.0, 0.05, 0.4, 3.0]))
def test_penalised_semantic_map_is_argmax_of_lowered_scores(case: Case, penalty: float) -> None:
    seen = torch.tensor(case.isthing)
    scores = semantic_scores(case.class_scores, case.mask_logits)
    for k, flag in enumerate(seen.tolist()):
        scores[k] -= penalty * flag
    best = semantic_map(case.class_scores, case.mask_logits, penalty * seen.double())
    torch.testing.assert_close(scores.gather(0, best[None])[0], scores.max(0).values)


@pytest.mark.parametrize("penalty", [0.0, 0.02, 0.3, 2.0])
def test_equal_penalties_change_nothing(penalty: float) -> None:
    """Faint masks: lowered scores are negative and nearly equal, but the best may not be skipped."""
    scores, masks, _ = large_case(300, 12)
    faint = masks[:, :8, :8].double() / 100 - 12
    plain = semantic_map(scores.double(), faint)
    found = semantic_map(scores.double(), faint, torch.full((300,), penalty, dtype=torch.float64))
    assert torch.equal(found, plain)


def test_seen_classes_lose_only_in_the_semantic_map() -> None:
    scores = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.2, 0.7]])
    masks, sizes = 9 * torch.ones(2, 8, 8), ((32, 32), (32, 32), (9, 9))
    seen = torch.tensor([True, False])
    results = [
        predict(scores, masks, [True, True], InferenceSettings(seen_penalty=gamma), *sizes, flags)
        for gamma, flags in ((0.0, seen), (0.3, None), (0.3, seen))
    ]
    assert [int(result.semantic.unique()) for result in results] == [0, 0, 1]
    assert [result.panoptic.segments[0].category for result in results] == [0, 0, 0]
    assert len({tuple(result.instances.labels.tolist()) for result in results}) == 1


def test_first_class_wins_ties() -> None:
    assert semantic_map(torch.zeros(2, 6), torch.ones(2, 3, 3)).eq(0).all()


def test_no_object_gives_void_and_no_instances() -> None:
    sure_of_nothing = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
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
    ("setting", "value"),
    [("object_threshold", -0.1), ("overlap_threshold", 1.5), ("top_k", 0), ("seen_penalty", -1)],
)
def test_invalid_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"inference\.{setting}={value}"):
        InferenceSettings(**{setting: value})


def large_case(classes: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, list[bool]]:
    """Class scores, masks of a canvas of 128 x 192 with regions of several cells, and which are things."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 8 * torch.randn(1, queries, 8, 12, generator=generator)
    masks = F.interpolate(coarse, (32, 48), mode="bicubic")[0]
    scores = (3 * torch.randn(queries, classes + 1, generator=generator)).softmax(-1)
    return scores, masks, [bool(k % 2) for k in range(classes)]


@pytest.mark.parametrize(("classes", "output"), [(9, (400, 520)), (300, (97, 131))])
def test_bands_equal_whole_masks(
    classes: int, output: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ((128, 192), (120, 171), output)
    for seed, thresholds in enumerate([(0.0, 0.0), (0.3, 0.5)]):
        class_scores, masks, isthing = large_case(classes, 12, seed)
        found = []
        for small, pixels in ((0, 1 << 13), (1 << 40, 1 << 13), (1 << 40, 1 << 40)):
            monkeypatch.setattr("odise_pl.models.inference._SMALL", small)
            monkeypatch.setitem(bands._PIXELS, "cpu", pixels)
            result = predict(class_scores, masks, isthing, InferenceSettings(*thresholds, 40), *sizes)
            found.append(Prediction(result.panoptic, result.instances, result.semantic))
        *banded, whole = found
        for one in banded:
            assert torch.equal(one.panoptic.ids, whole.panoptic.ids)
            assert one.panoptic.segments == whole.panoptic.segments
            assert torch.equal(one.semantic, whole.semantic)
            assert torch.equal(one.instances.masks, whole.instances.masks)
            torch.testing.assert_close(one.instances.scores, whole.instances.scores)
        scores = semantic_scores(class_scores, resize_masks(masks, *sizes))
        torch.testing.assert_close(scores.gather(0, whole.semantic[None])[0], scores.amax(0))


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
    scores, masks, isthing = large_case(847, 25)
    height, width = 1500, 2000
    sizes = ((128, 192), (128, 171), (height, width))
    with LargestTensor() as largest:
        getattr(predict(scores, masks, isthing, InferenceSettings(overlap_threshold=0.0), *sizes), measure)
    assert largest.nbytes <= height * width * bytes_of_a_pixel


def test_best_query_without_a_segment() -> None:
    scores = torch.tensor([[0.2, 0.05, 0.75], [0.1, 0.3, 0.6]])
    sizes = ((32, 32), (32, 32), (9, 9))
    found = predict(scores, -torch.ones(2, 8, 8), [True, True], InferenceSettings(), *sizes)
    assert not found.panoptic.segments
    assert found.best == (1, pytest.approx(0.3))


def test_scores_need_not_be_probabilities() -> None:
    """Several classes may be sure; a query is void only where no object scores more than the best of them."""
    scores = torch.tensor([[0.2, 0.1, 0.3], [0.6, 0.6, 0.5], [0.3, 0.7, 0.2]])
    masks = torch.full((3, 3, 3), -9.0)
    for query, mask in enumerate(masks):
        mask[query] = 9
    found = predict(scores, masks, [True, True], InferenceSettings(), *((12, 12),) * 3)
    assert [round(s.score, 2) for s in found.panoptic.segments] == [0.6, 0.7]
    assert sorted(found.instances.scores.tolist())[-3:] == pytest.approx([0.6, 0.6, 0.7], abs=0.04)
    assert found.semantic[-1].eq(1).all()


@pytest.mark.parametrize("penalty", [0.0, 0.4])
def test_pixels_have_the_class_of_highest_probability(penalty: float) -> None:
    """Logits of cells are resized, cropped to the image and resized; seen classes lose the penalty."""
    random = torch.Generator().manual_seed(0)
    logits, seen = 3 * torch.randn(4, 4, 6, generator=random), torch.tensor([True, False, True, False])
    settings = InferenceSettings(seen_penalty=penalty)
    found = predict_pixels(logits, [True, True, False, False], settings, (16, 24), (12, 20), (18, 30), seen)
    full = F.interpolate(logits[None], (16, 24), mode="bilinear")[..., :12, :20]
    full = F.interpolate(full, (18, 30), mode="bilinear")[0]
    labels, scores = torch.zeros(18, 30, dtype=torch.int64), torch.zeros(18, 30)
    for y in range(18):
        for x in range(30):
            p = full[:, y, x].exp() / full[:, y, x].exp().sum()
            ranked = [float(p[k]) - penalty * bool(seen[k]) for k in range(4)]
            labels[y, x] = ranked.index(max(ranked))
            scores[y, x] = p[labels[y, x]]
    assert torch.equal(found.semantic, labels)
    segments = {segment.category: segment for segment in found.panoptic.segments}
    assert set(segments) == set(labels.flatten().tolist())
    for label, segment in segments.items():
        assert torch.equal(found.panoptic.ids == segment.id, labels == label)
        assert segment.score == pytest.approx(float(scores[labels == label].mean()), rel=1e-4)
        assert segment.isthing == (label < 2)
    assert len(found.instances.labels) == 0
    place = int(scores.argmax())
    assert found.best == (int(labels.flatten()[place]), pytest.approx(float(scores.max()), rel=1e-5))


def test_pixels_of_large_images_are_named_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    sizes = ((64, 64), (60, 50), (90, 70))
    whole = predict_pixels(logits, [True] * 3, InferenceSettings(), *sizes)
    monkeypatch.setattr("odise_pl.models.inference._SMALL", 1)
    monkeypatch.setattr(bands, "_PIXELS", {"cpu": 700})
    parts = predict_pixels(logits, [True] * 3, InferenceSettings(), *sizes)
    assert torch.equal(parts.semantic, whole.semantic)
