"""A demo of the whole project: paint data sets, train, evaluate, draw pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.files import write_text
from odise_pl.metrics.tables import result_table
from odise_pl.prediction.drawing import overlay, side_by_side
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.runs.conf import compose_config
from odise_pl.toyworld.make import make, toy_sets
from odise_pl.training import run

EXPERIMENTS = {"label": "[toy,demo]", "caption": "[toy_caption,demo]"}
_SETS = ("toy_val", "toy_open")


def run_demo(
    supervision: str,
    folder: Path,
    shards: Path,
    settings: Sequence[str] = (),
    counts: tuple[int, int, int] = (2000, 200, 200),
    rows: int = 8,
) -> None:
    """Paint the small world's data sets, train on the base categories, evaluate on all, and draw pictures.

    Painted data sets and a finished run are reused; an interrupted run resumes.

    Args:
        supervision: ``label`` or ``caption``.
        folder: of the run.
        shards: folder of the data sets.
        settings: of training, ``KEY=VALUE``.
        counts: pictures of train, val and open.
        rows: of the sheet of pictures.

    Raises:
        UserError: a folder has other content, or a setting is wrong.
        SystemExit: a signal stopped the run, which can be resumed.
    """
    config = compose_config("train", [f"experiment={EXPERIMENTS[supervision]}", "run=demo", *settings])
    config.run_dir, config.paths.shards = str(folder), str(shards)
    for toy_set in toy_sets(*counts):
        make(toy_set, shards, workers=2)
    run.train_or_skip(config)
    results = [json.loads((folder / "results" / name / "results.json").read_text()) for name in _SETS]
    write_text(folder / "results.md", result_table(results).markdown())
    network = folder / "checkpoints" / "last.ckpt"
    sheet = draw_pictures(network, shards / "toy_open", rows)
    sheet.save(folder / "pictures.png")
    print(f"scores: {folder / 'results.md'}")
    print(f"pictures: {folder / 'pictures.png'} (image, truth, prediction); network: {network}")
    print(f"curves: tensorboard --logdir {folder}")


def draw_pictures(checkpoint: Path, shards: Path, rows: int) -> Image.Image:
    """Draw the first images of a data set, each in a row with its truth and the prediction.

    Args:
        checkpoint: of the network.
        shards: folder of the data set.
        rows: number of images.
    """
    segmenter = Segmenter.from_pretrained(checkpoint)
    data = PanopticDataModule(
        val={"toy_open": str(shards)},
        num_workers=0,
        eval_batch_size=1,
        eval_short_side=segmenter.resize.short_side,
        eval_long_side=segmenter.resize.long_side,
    )
    vocabulary = data.vocabulary("toy_open")
    predictor = NetworkPredictor(segmenter.model, vocabulary, segmenter.training)
    pictures = []
    for batch, _ in zip(data.eval_loader("toy_open"), range(rows), strict=False):
        (prediction,), (truth,) = predictor(batch), batch.truths
        assert truth is not None
        height, width = batch.valid_sizes[0]
        image = batch.images[0, :, :height, :width]
        maps = [overlay(image, found, vocabulary.names) for found in (truth.panoptic, prediction.panoptic)]
        plain = Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy())
        pictures.append(side_by_side([np.asarray(plain.resize(maps[0].shape[1::-1])), *maps]))
    return Image.fromarray(_stacked(pictures))


def _stacked(rows: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, gap), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(padded)
