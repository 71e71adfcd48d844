"""What limits panoptic quality on the small world: true masks or true names in place of predicted ones."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.errors import UserError, report_user_errors
from odise_pl.metrics.suite import SegmentationMetrics
from odise_pl.models.classifiers.fusion import MODES
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.heads.mask_decoder import DecoderOutput
from odise_pl.models.inference import MaskedPrediction, predict, resize_masks
from odise_pl.models.odise import Odise
from odise_pl.models.ops.bands import Masks
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.structures import Batch, Prediction, Size, Truth
from scripts.figures import write_figures

CELLS = (32, 64, 128)  # of a side of a map of masks: stride 4, 2 and 1 of the 128 pixels
_SURE = 20.0  # logit


def measure(segmenter: Segmenter, shards: Path, name: str) -> dict[str, dict[str, float]]:
    """Panoptic quality in percent of the predictions and of each replacement: by row and score."""
    model, resize = segmenter.model, segmenter.resize
    if not isinstance(model, Odise):
        raise UserError("only a run with masks of queries has these limits")
    data = PanopticDataModule(
        val={name: str(shards / name)},
        eval_batch_size=8,
        num_workers=0,
        eval_short_side=resize.short_side,
        eval_long_side=resize.long_side,
    )
    classes, seen = data.vocabulary(name), data.vocabulary(name).overlap(segmenter.training)
    prepared = model.prepare(classes, segmenter.training)
    rows: dict[str, SegmentationMetrics] = {}
    for batch in data.eval_loader(name):
        with torch.no_grad():
            output = model.decode(batch.images)[-1]
        for image, truth in enumerate(batch.truths):
            assert truth is not None
            for row, prediction in _variants(model, batch, image, truth, output, prepared):
                if row not in rows:
                    rows[row] = SegmentationMetrics(classes.isthing, classes.names, seen, ("panoptic",))
                rows[row].update([prediction], [truth], [batch.image_ids[image]])
    return {row: {k: 100 * v for k, v in m.compute().scalars().items()} for row, m in rows.items()}


def _variants(
    model: Odise,
    batch: Batch,
    image: int,
    truth: Truth,
    output: DecoderOutput,
    classes: InferenceClasses,
) -> Iterator[tuple[str, Prediction]]:
    isthing = classes.isthing
    pixels, one = batch.images[image : image + 1], _of_image(output, image)
    valid, sizes = (
        batch.valid_sizes[image],
        (_size(pixels), batch.valid_sizes[image], batch.original_sizes[image]),
    )
    segments = truth.panoptic.segments
    masks = torch.stack([truth.panoptic.ids == segment.id for segment in segments]).float()
    names = [segment.category for segment in segments]
    placed = pixels.new_zeros(len(masks), *_size(pixels))
    placed[:, : valid[0], : valid[1]] = F.interpolate(masks[None], valid, mode="area")[0]

    def result(scores: Tensor, masks: Tensor | None = None) -> Prediction:
        """With the predicted masks, or those of 0 and 1 that are given."""
        if masks is None:
            return predict(scores, one.mask_logits[0], isthing, model.inference, *sizes)
        return MaskedPrediction(scores, Masks(_SURE * (2 * masks - 1)), isthing, model.inference)

    yield "predicted masks, predicted names", result(model.classify(one, pixels, [valid], classes)[0])

    found = (resize_masks(one.mask_logits[0], *sizes) > 0).flatten(1).float()
    overlap = found @ masks.flatten(1).T
    iou = overlap / (found.sum(1)[:, None] + masks.flatten(1).sum(1) - overlap)
    best, nearest = iou.max(1)
    named = [names[i] if share > 0.5 else len(isthing) for share, i in zip(best, nearest, strict=True)]
    yield "predicted masks, true names", result(_certain(named, len(isthing)))

    # each true mask with the embedding of the query that overlaps it most
    embeddings = one.mask_embed[:, iou.argmax(0)]
    exact = replace(
        one, mask_logits=_SURE * (2 * placed[None] - 1), mask_embed=embeddings, object_logits=None
    )
    chosen = model.classifier
    for mode in MODES:
        model.classifier = replace(chosen, mode=mode)
        scores = model.classify(exact, pixels, [valid], classes)[0]
        scores[:, -1] = 0  # a true mask is an object
        yield f"true masks, names by {mode}", result(scores, masks)
    model.classifier = chosen

    for cells in CELLS:
        coarse = F.interpolate(placed[None], (cells, cells), mode="area")[0]
        owner = resize_masks(coarse, *sizes).argmax(0)
        sharp = torch.stack([owner == i for i in range(len(masks))]).float()
        yield (
            f"true masks of {cells} x {cells} cells, true names",
            result(_certain(names, len(isthing)), sharp),
        )


def _of_image(output: DecoderOutput, image: int) -> DecoderOutput:
    parts = {k: v[image : image + 1] for k, v in vars(output).items() if isinstance(v, Tensor) and v.dim()}
    return replace(output, **parts)


def _certain(names: list[int], classes: int) -> Tensor:
    """Scores [N, classes + 1] that are sure of the names; the last is no object."""
    return F.one_hot(torch.tensor(names), classes + 1).float()


def _size(pixels: Tensor) -> Size:
    return (pixels.shape[2], pixels.shape[3])


def main() -> None:
    """Print a line per set and row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run of the small world, or a checkpoint")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder of its data sets")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures for the documentation")
    chosen = parser.parse_args()
    segmenter = Segmenter.from_pretrained(chosen.run, device="cpu")
    rows = {name: measure(segmenter, chosen.shards, name) for name in ("toy_val", "toy_open")}
    for name, by_row in rows.items():
        for row, scores in by_row.items():
            shown = ("pq", "sq", "rq", "pq_base", "pq_novel")
            print(f"{name}, {row}:", *(f"{key} {scores[key]:.1f}" for key in shown if key in scores))
    if chosen.json:
        what = "Panoptic quality in percent with true masks or true names in place of predicted ones."
        write_figures(chosen.json, what, {"rows": rows})


if __name__ == "__main__":
    with report_user_errors():
        main()
