"""Semantic, panoptic and instance results from class scores and mask logits: pure functions.

Mask2Former (arXiv 2112.01527), section 3.1 and MaskFormer (arXiv 2107.06278), section 3.4.
Throughout: Q queries, K classes; ``class_scores`` [Q, K + 1] with no object last, probabilities or what a
rule of fusion makes of them; ``mask_logits`` [Q, H, W], a tensor or
:class:`~odise_pl.models.ops.bands.Masks`, which are processed in bands of rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.errors import check_number
from odise_pl.models.ops.bands import Masks, ResizedMasks
from odise_pl.structures import Instances, PanopticSegmentation, Prediction, Segment, Size

_SMALL = 1 << 22  # mask values up to which all masks are resized at once
_TILE = 1 << 12  # pixels of a tile; neighbours mostly have few classes
_ROUNDING = 1e-4  # relative bound of rounding errors in sums over queries


@dataclass(frozen=True)
class InferenceSettings:
    """Thresholds of the published evaluation.

    Attributes:
        object_threshold: the panoptic map skips queries whose best class scores at most this.
        overlap_threshold: a segment is kept if the pixels that it wins, in its mask or not, are at least this
            fraction of its mask's pixels.
        top_k: instances per image, before stuff classes are removed.
        seen_penalty: subtracted from the semantic map's scores of classes that share a name with a training
            class (ZegFormer, arXiv 2112.07910; calibrated stacking).
    """

    object_threshold: float = 0.0
    overlap_threshold: float = 0.8
    top_k: int = 100
    seen_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_number("model.inference.object_threshold", self.object_threshold, 0, whole=False, most=1)
        check_number("model.inference.overlap_threshold", self.overlap_threshold, 0, whole=False, most=1)
        check_number("model.inference.top_k", self.top_k, 1)
        check_number("model.inference.seen_penalty", self.seen_penalty, whole=False)


def resize_masks(mask_logits: Tensor, canvas: Size, valid: Size, output: Size) -> Tensor:
    """Resize masks to the canvas (bilinear), crop to the image, resize to the output size (bilinear).

    Args:
        mask_logits: [Q, h, w] of the whole canvas.
        canvas: size of the padded image.
        valid: size of the image without padding.
        output: size of the result.

    Returns:
        [Q, *output] logits.
    """
    full = F.interpolate(mask_logits[None], canvas, mode="bilinear", align_corners=False)
    cropped = full[..., : valid[0], : valid[1]]
    return F.interpolate(cropped, output, mode="bilinear", align_corners=False)[0]


def semantic_map(class_scores: Tensor, mask_logits: Tensor | Masks, penalty: Tensor | None = None) -> Tensor:
    """Best class of every pixel, int64 [H, W]; the first class wins ties.

    ``penalty`` [K] is subtracted from the scores of the classes.
    """
    masks = _as_masks(mask_logits)
    scores = class_scores[:, :-1]
    labels = torch.empty(masks.size, dtype=torch.int64, device=masks.device)
    for rows, band in masks.bands():
        inside = scores.new_empty(masks.queries, *labels[rows].shape)
        for query, mask in enumerate(inside):
            torch.sigmoid(band(query), out=mask)
        tiles = range(0, masks.size[1], -(-_TILE // inside.shape[1]))
        for columns in (slice(start, start + tiles.step) for start in tiles):
            best = _best_class(scores, inside[:, :, columns].flatten(1), penalty)
            labels[rows, columns] = best.view(inside.shape[1], -1)
    return labels


def _best_class(class_scores: Tensor, masks: Tensor, penalty: Tensor | None) -> Tensor:
    """Best class [N] from class scores [Q, K], masks [Q, N] of neighbouring pixels, penalties [K].

    Classes whose upper bound is below another's lower bound in the whole tile are skipped.
    """
    low, high = masks.aminmax(dim=1)
    with torch.autocast(masks.device.type, enabled=False):  # bfloat16 would cause ties
        most, least = high @ class_scores, (1 - _ROUNDING) * (low @ class_scores)
        if penalty is not None:  # last: rounding errors are relative to the sums over queries
            most, least = most - penalty, least - penalty
        behind = most < least.max()
        possible = behind.logical_not().nonzero()[:, 0]
        scores = masks.T @ class_scores[:, possible]
        if penalty is not None:
            scores -= penalty[possible]
    # on CPUs, NumPy's argmax is many times faster
    best = torch.from_numpy(scores.numpy().argmax(-1)) if scores.device.type == "cpu" else scores.argmax(-1)
    return possible[best]


def panoptic(
    class_scores: Tensor, mask_logits: Tensor | Masks, isthing: Sequence[bool], settings: InferenceSettings
) -> PanopticSegmentation:
    """Panoptic map with int32 ids in the order of the queries; stuff segments of one class are merged."""
    masks = _as_masks(mask_logits)
    ids = torch.zeros(masks.size, dtype=torch.int32, device=masks.device)
    scores, labels = class_scores.max(-1)
    kept = ((labels != len(isthing)) & (scores > settings.object_threshold)).nonzero()[:, 0]
    if not len(kept):
        return PanopticSegmentation(ids, ())
    scores, labels = scores[kept], labels[kept]
    claimed, won = kept.new_zeros(len(kept)), kept.new_zeros(len(kept), 2)
    for rows, band in masks.bands():
        ids[rows], claims = _owners(map(band, kept.tolist()), scores)
        claimed += claims
        won += ids[rows].flatten().bincount(minlength=won.numel()).view_as(won)
    chosen = _surviving(won, claimed, settings.overlap_threshold)
    assigned, segments = number_segments(chosen, labels.tolist(), scores.tolist(), isthing)
    lookup = torch.tensor([[0, number] for number in assigned], dtype=torch.int32, device=ids.device)
    for rows, _ in masks.bands():
        ids[rows] = lookup.flatten()[ids[rows]]
    return PanopticSegmentation(ids, segments)


def _owners(mask_logits: Iterable[Tensor], scores: Tensor) -> tuple[Tensor, Tensor]:
    """The query that wins each pixel, from masks [h, w] and scores [Q] of all queries.

    Returns:
        [h, w]: twice the winner's index, plus one where its mask covers the pixel.
        [Q]: number of pixels that each mask covers.
    """
    best, owner, claimed = scores.new_tensor(-1.0), scores.new_zeros(()), []
    for number, (logits, score) in enumerate(zip(mask_logits, scores, strict=True)):
        mask = logits.sigmoid()
        # 0 or 1 in the precision of the masks: many times faster than bool
        claims = torch.ge(mask, 0.5, out=torch.empty_like(mask))
        claimed.append(claims.count_nonzero())
        weighted = score * mask
        better = torch.gt(weighted, best, out=torch.empty_like(mask))
        # indices increase, so the maximum is the latest better query
        owner = torch.maximum(owner, better * (claims + 2 * number))
        best = torch.maximum(best, weighted)
    return owner, torch.stack(claimed)


def _surviving(won: Tensor, claimed: Tensor, overlap_threshold: float) -> list[bool]:
    """Queries that win pixels of their mask, and at least the threshold's fraction of what they claim.

    ``won`` [Q, 2] counts pixels outside and inside the mask, ``claimed`` [Q] those of the mask.
    """
    alive = (won[:, 1] > 0) & (claimed > 0)
    enough = won.sum(1) / claimed.clamp(min=1) >= overlap_threshold
    return (alive & enough).tolist()


def number_segments(
    chosen: list[bool], labels: list[int], scores: list[float], isthing: Sequence[bool]
) -> tuple[list[int], tuple[Segment, ...]]:
    """Segment id of each query (0 if not chosen), and the segments."""
    assigned = [0] * len(chosen)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for query, (wanted, label, score) in enumerate(zip(chosen, labels, scores, strict=True)):
        if not wanted:
            continue
        if not isthing[label] and label in stuff:
            assigned[query] = stuff[label]
            continue
        assigned[query] = len(segments) + 1
        stuff.setdefault(label, assigned[query])
        segments.append(Segment(assigned[query], label, bool(isthing[label]), score=score))
    return assigned, tuple(segments)


def instances(
    class_scores: Tensor, mask_logits: Tensor | Masks, isthing: Sequence[bool], settings: InferenceSettings
) -> Instances:
    """Things among the best query-class pairs, scored by class score times mean mask probability."""
    labels, queries, scores = top_things(class_scores, isthing, settings.top_k)
    masks = _as_masks(mask_logits)
    # pairs share queries: each mask is scored once
    used, row = queries.unique(return_inverse=True)
    found = torch.empty(len(used), *masks.size, dtype=torch.bool, device=masks.device)
    inside = torch.zeros(len(used), dtype=torch.float64, device=masks.device)
    for rows, band in masks.bands():
        for number, query in enumerate(used.tolist()):
            logits = band(query)
            found[number, rows] = logits > 0
            inside[number] += (logits.sigmoid() * found[number, rows]).sum()
    area = torch.stack([mask.count_nonzero() for mask in found]) if len(found) else inside
    mean = (inside / (area + 1e-6)).to(scores.dtype)
    return Instances(labels, scores * mean[row], found[row])


def top_things(class_scores: Tensor, isthing: Sequence[bool], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Things among the ``top_k`` best query-class pairs: labels, queries, scores, [M] each."""
    pairs, classes = class_scores[:, :-1].flatten(), class_scores.shape[1] - 1
    scores, flat = pairs.topk(min(top_k, len(pairs)), sorted=False)
    labels, queries = flat % classes, flat // classes
    things = torch.tensor(isthing, dtype=torch.bool, device=labels.device)[labels]
    return labels[things], queries[things], scores[things]


def pixel_map(class_logits: Masks, penalty: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Best class of every pixel, int64 [H, W], and its probability [H, W], from logits [K, H, W].

    ``penalty`` [K] is subtracted from the probabilities of the classes before they are compared.
    """
    labels = torch.empty(class_logits.size, dtype=torch.int64, device=class_logits.device)
    scores = torch.empty(class_logits.size, device=class_logits.device)
    if penalty is None:
        penalty = scores.new_zeros(class_logits.queries)
    amounts, groups = penalty.unique(return_inverse=True)
    for rows, band in class_logits.bands():
        # one class at a time: all of them would take gigabytes. The best of equal penalties is the highest.
        best = scores.new_full((len(amounts), *labels[rows].shape), float("-inf"))
        names, total = labels.new_zeros(best.shape), best[0].clone()
        for label, group in enumerate(groups.tolist()):
            logits = band(label)
            total = torch.logaddexp(total, logits)
            names[group].masked_fill_(logits > best[group], label)
            torch.maximum(best[group], logits, out=best[group])
        probabilities = (best - total).exp()
        chosen = (probabilities - amounts[:, None, None]).argmax(0, keepdim=True)
        labels[rows], scores[rows] = names.gather(0, chosen)[0], probabilities.gather(0, chosen)[0]
    return labels, scores


class NetworkPrediction(Prediction):
    """Prediction of a network for one image.

    Each result is computed on first use, and lies on the CPU.
    """

    @property
    @abstractmethod
    def best(self) -> tuple[int, float]:
        """Class and score of what is most certain, even if it has no segment."""


class PixelPrediction(NetworkPrediction):
    """Prediction of a dense method.

    Its panoptic map has one segment per class, of the mean probability of its pixels, and it has no
    instances: dense methods cannot tell things of a class apart.

    Args:
        class_logits: [K, H, W].
        isthing: one flag per class.
        penalty: [K], see :func:`pixel_map`.
    """

    def __init__(self, class_logits: Masks, isthing: Sequence[bool], penalty: Tensor | None = None) -> None:
        self._from, self._penalty = (class_logits, isthing), penalty

    @cached_property
    def _best(self) -> tuple[Tensor, Tensor]:
        labels, scores = pixel_map(self._from[0], self._penalty)
        return labels.cpu(), scores.cpu()

    @property
    def semantic(self) -> Tensor:
        """See :func:`pixel_map`."""
        return self._best[0]

    @cached_property
    def panoptic(self) -> PanopticSegmentation:
        """One segment for each class of the semantic map."""
        labels, scores = self._best
        present, ids, counts = labels.unique(return_inverse=True, return_counts=True)
        means = torch.zeros(len(present), device=ids.device).index_add_(0, ids.flatten(), scores.flatten())
        segments = [
            Segment(number, label, bool(self._from[1][label]), score=score)
            for number, (label, score) in enumerate(
                zip(present.tolist(), (means / counts).tolist(), strict=True), start=1
            )
        ]
        return PanopticSegmentation((ids + 1).to(torch.int32), tuple(segments))

    @cached_property
    def instances(self) -> Instances:
        """None."""
        labels, scores = self._best
        return Instances(labels.new_empty(0), scores.new_empty(0), labels.new_empty(0, *labels.shape).bool())

    @property
    def best(self) -> tuple[int, float]:
        """Class and score of the most certain pixel."""
        labels, scores = self._best
        place = int(scores.argmax())
        return int(labels.flatten()[place]), float(scores.flatten()[place])


class MaskedPrediction(NetworkPrediction):
    """Prediction from masks.

    Args:
        class_scores: [Q, K + 1].
        masks: [Q, H, W].
        isthing: one flag per class.
        settings: thresholds.
        penalty: [K], see :func:`semantic_map`.
    """

    def __init__(
        self,
        class_scores: Tensor,
        masks: Masks,
        isthing: Sequence[bool],
        settings: InferenceSettings,
        penalty: Tensor | None = None,
    ) -> None:
        self._from, self._penalty = (class_scores, masks, isthing, settings), penalty

    @cached_property
    def panoptic(self) -> PanopticSegmentation:
        """See :func:`panoptic`."""
        return panoptic(*self._from).to("cpu")

    @cached_property
    def instances(self) -> Instances:
        """See :func:`instances`."""
        return instances(*self._from).to("cpu")

    @cached_property
    def semantic(self) -> Tensor:
        """See :func:`semantic_map`."""
        return semantic_map(*self._from[:2], self._penalty).cpu()

    @property
    def best(self) -> tuple[int, float]:
        """Class and score of the most confident query, even if it has no segment."""
        score, label = self._from[0][:, :-1].amax(0).max(0)
        return int(label), float(score)


def predict(
    class_scores: Tensor,
    mask_logits: Tensor,
    isthing: Sequence[bool],
    settings: InferenceSettings,
    canvas: Size,
    valid: Size,
    output: Size,
    seen: Tensor | None = None,
) -> MaskedPrediction:
    """All results of one image: class scores [Q, K + 1], mask logits [Q, h, w]; see :func:`resize_masks`.

    ``seen``, bool [K], are the classes that ``settings.seen_penalty`` is for.
    """
    masks = _resized(mask_logits, canvas, valid, output)
    return MaskedPrediction(class_scores, masks, isthing, settings, _penalty(settings, seen))


def predict_pixels(
    class_logits: Tensor,
    isthing: Sequence[bool],
    settings: InferenceSettings,
    canvas: Size,
    valid: Size,
    output: Size,
    seen: Tensor | None = None,
) -> PixelPrediction:
    """All results of one image from class logits [K, h, w] of its cells; arguments as of :func:`predict`."""
    logits = _resized(class_logits, canvas, valid, output)
    return PixelPrediction(logits, isthing, _penalty(settings, seen))


def _resized(logits: Tensor, canvas: Size, valid: Size, output: Size) -> Masks:
    small = len(logits) * math.prod(output) <= _SMALL
    sizes = (canvas, valid, output)
    return Masks(resize_masks(logits, *sizes)) if small else ResizedMasks(logits, *sizes)


def _penalty(settings: InferenceSettings, seen: Tensor | None) -> Tensor | None:
    return settings.seen_penalty * seen if settings.seen_penalty and seen is not None else None


def _as_masks(mask_logits: Tensor | Masks) -> Masks:
    return mask_logits if isinstance(mask_logits, Masks) else Masks(mask_logits)
