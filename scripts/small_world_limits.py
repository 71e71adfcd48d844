"""What limits panoptic quality on the small world.

True masks or true names in place of predicted ones; and at which step things of each size are lost.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.errors import UserError, report_user_errors
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.models.classifiers.fusion import MODES
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.inference import MaskedPrediction, predict, resize_masks
from odise_pl.models.odise import Odise
from odise_pl.models.ops.bands import Masks
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.structures import Batch, PanopticSegmentation, Prediction, Segment, Size
from scripts.figures import write_figures

PREDICTED = "predicted masks, predicted names"
CELLS = (32, 64, 128)  # of a side of a map of masks: stride 4, 2 and 1 of the 128 pixels
SIZES = {"below 250": 250, "250 to 500": 500, "500 to 1,000": 1000, "above 1,000": float("inf")}  # pixels
FOUND = ("by a query", "in the result", "with its name")
_SURE = 20.0  # logit
Scores = dict[str, dict[str, float]]


class Thing(NamedTuple):
    """A true thing: its pixels, and what matches it (IoU above 0.5), one flag for each of ``FOUND``."""

    area: float
    found: tuple[bool, bool, bool]


def measure(segmenter: Segmenter, shards: Path, name: str) -> tuple[Scores, Scores]:
    """What limits a set.

    Returns:
        scores in percent of the predictions and of each replacement, by row.
        by size: the number of true things, and the percentages of ``FOUND``.
    """
    model, resize = segmenter.model, segmenter.resize
    if not isinstance(model, Odise):
        raise UserError("only a run with masks of queries has these limits")
    data = PanopticDataModule(
        val={name: str(shards / name)},
        num_workers=0,
        eval_short_side=resize.short_side,
        eval_long_side=resize.long_side,
    )
    classes = data.vocabulary(name)
    seen, prepared = classes.overlap(segmenter.training), model.prepare(classes, segmenter.training)
    rows: dict[str, SegmentationMetrics] = {}
    things: list[Thing] = []
    for batch in data.eval_loader(name):  # one image each
        (truth,) = batch.truths
        assert truth is not None
        segments, masks = truth.panoptic.segments, _masks_of(truth.panoptic)
        predictions, iou = _replacements(model, batch, segments, masks, prepared)
        things += _things(segments, masks, predictions[PREDICTED].panoptic, iou)
        for row, prediction in predictions.items():
            if row not in rows:
                rows[row] = SegmentationMetrics(classes.isthing, classes.names, seen, ("panoptic",))
            rows[row].update([prediction], [truth], batch.image_ids)
    scores = {row: {k: 100 * v for k, v in m.compute().scalars().items()} for row, m in rows.items()}
    return scores, _by_size(things)


def _things(
    truth: Sequence[Segment], masks: Tensor, result: PanopticSegmentation, iou: Tensor
) -> Iterator[Thing]:
    """The things among the true segments; ``iou`` is that of [queries, true segments]."""
    by_query, in_result = iou > 0.5, _iou(_masks_of(result), masks) > 0.5
    categories = torch.tensor([segment.category for segment in result.segments])
    for number, segment in enumerate(truth):
        if segment.isthing:
            matches = in_result[:, number]
            named = matches & (categories == segment.category)
            found = bool(by_query[:, number].any()), bool(matches.any()), bool(named.any())
            yield Thing(float(masks[number].sum()), found)


def _by_size(things: Sequence[Thing]) -> Scores:
    shares, least = {}, 0.0
    for size, limit in SIZES.items():
        found = [thing.found for thing in things if least <= thing.area < limit]
        if found:
            percent = [100 * fmean(flags) for flags in zip(*found, strict=True)]
            shares[size] = {"things": len(found), **dict(zip(FOUND, percent, strict=True))}
        least = limit
    return shares


@torch.no_grad()
def _replacements(
    model: Odise, batch: Batch, truth: Sequence[Segment], masks: Tensor, classes: InferenceClasses
) -> tuple[dict[str, Prediction], Tensor]:
    """The prediction for an image and those with replacements, by row; and the IoU of queries and truth."""
    pixels, (valid,), isthing = batch.images, batch.valid_sizes, classes.isthing
    sizes = _size(pixels), valid, batch.original_sizes[0]
    output = model.decode(pixels)[-1]
    names = [segment.category for segment in truth]
    placed = pixels.new_zeros(len(masks), *_size(pixels))
    placed[:, : valid[0], : valid[1]] = F.interpolate(masks[None].float(), valid, mode="area")[0]

    def predicted(scores: Tensor) -> Prediction:
        return predict(scores, output.mask_logits[0], isthing, model.inference, *sizes)

    def given(scores: Tensor, masks: Tensor) -> Prediction:
        return MaskedPrediction(scores, Masks(_SURE * (2 * masks.float() - 1)), isthing, model.inference)

    rows = {PREDICTED: predicted(model.classify(output, pixels, [valid], classes)[0])}
    iou = _iou(resize_masks(output.mask_logits[0], *sizes) > 0, masks)
    best, nearest = iou.max(1)
    named = [names[i] if share > 0.5 else len(isthing) for share, i in zip(best, nearest, strict=True)]
    rows["predicted masks, true names"] = predicted(_certain(named, len(isthing)))

    # each true mask with the embedding of the query that overlaps it most
    queries, objects = iou.argmax(0), output.object_logits
    exact = replace(
        output,
        mask_logits=_SURE * (2 * placed[None] - 1),
        mask_embed=output.mask_embed[:, queries],
        object_logits=None if objects is None else objects[:, queries],
    )
    chosen = model.classifier
    for mode in MODES:
        model.classifier = replace(chosen, mode=mode)
        scores = model.classify(exact, pixels, [valid], classes)[0]
        scores[:, -1] = 0  # a true mask is an object
        rows[f"true masks, names by {mode}"] = given(scores, masks)
    model.classifier = chosen

    for cells in CELLS:
        coarse = F.interpolate(placed[None], (cells, cells), mode="area")[0]
        owner = resize_masks(coarse, *sizes).argmax(0)
        sharp = F.one_hot(owner, len(masks)).permute(2, 0, 1)
        rows[f"true masks of {cells} x {cells} cells, true names"] = given(
            _certain(names, len(isthing)), sharp
        )
    return rows, iou


def _masks_of(segmentation: PanopticSegmentation) -> Tensor:
    """Bool [segments, H, W]."""
    ids = torch.tensor([segment.id for segment in segmentation.segments])
    return segmentation.ids == ids[:, None, None]


def _iou(masks: Tensor, others: Tensor) -> Tensor:
    """[N, M] of masks [N, H, W] and [M, H, W]."""
    first, second = masks.flatten(1).float(), others.flatten(1).float()
    overlap = first @ second.T
    return overlap / (first.sum(1)[:, None] + second.sum(1) - overlap)


def _certain(names: list[int], classes: int) -> Tensor:
    """Scores [N, classes + 1] that are sure of the names; the last is no object."""
    return F.one_hot(torch.tensor(names), classes + 1).float()


def _size(pixels: Tensor) -> Size:
    return (pixels.shape[2], pixels.shape[3])


def main() -> None:
    """Print a line per run, set and row, and one per run, set and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs of the small world, or checkpoints")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder of its data sets")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    options = parser.parse_args()
    figures: dict[str, dict[str, dict[str, Scores]]] = {}
    for run in options.runs:
        segmenter = Segmenter.from_pretrained(run, device="cpu")
        figures[run] = {"rows": {}, "sizes": {}}
        for name in ("toy_val", "toy_open"):
            rows, sizes = measure(segmenter, options.shards, name)
            figures[run]["rows"][name], figures[run]["sizes"][name] = rows, sizes
            for row, scores in rows.items():
                shown = ("pq", "sq", "rq", "pq_base", "pq_novel")
                print(run, name, row, *(f"{key} {scores[key]:.1f}" for key in shown if key in scores))
            for size, shares in sizes.items():
                found = ", ".join(f"{shares[key]:.0f} % {key}" for key in FOUND)
                print(run, name, f"{shares['things']} things of {size} pixels: {found}")
    if options.json:
        what = (
            "PQ in percent with true masks or names in place of predicted ones; percentages of true things "
            "that are found, by their size."
        )
        write_figures(options.json, what, {"runs": figures})


if __name__ == "__main__":
    with report_user_errors():
        main()
