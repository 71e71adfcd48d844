"""The whole project in minutes, offline: ``make demo``, ``python -m odise_pl.toyworld.demo [label|caption]``.

Paints the small world's data sets, trains on the base categories, evaluates on them and on the open set, and
draws pictures. What is there already is used again; what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from odise_pl.arguments import ends_with_message, positive
from odise_pl.data.datamodule import PanopticDataModule
from odise_pl.data.manifest import FILE_NAME
from odise_pl.errors import UserError
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.files import write_text
from odise_pl.metrics.tables import result_table
from odise_pl.prediction.command import load_segmenter
from odise_pl.prediction.drawing import overlay, side_by_side
from odise_pl.runs.record import MARKER
from odise_pl.toyworld.commands import CommandError, Programs, add_overrides, setting
from odise_pl.toyworld.results import weights_digest
from odise_pl.toyworld.shipped import WEIGHTS

SETS = ("toy_val", "toy_open")
_EXPERIMENTS = {"label": "toy", "caption": "toy_caption"}


def check_origin(folder: Path, shards: Path) -> None:
    """Note what a run is made from, or see that it is still that: files may change under the same settings.

    Raises:
        UserError: the run was made from other pictures or frozen models.
    """
    sets = ("toy_train", *SETS)
    now = {name: hashlib.sha256((shards / name / FILE_NAME).read_bytes()).hexdigest() for name in sets}
    now["frozen models"] = weights_digest(WEIGHTS)
    note = folder / "made_from.json"
    before = _noted(note) if note.exists() else now
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{folder} was made from other files ({', '.join(changed)}): delete it to train anew, or name "
            f"another --run"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(now, indent=1))


def _noted(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return {}  # damaged: it may be anything


def train(programs: Programs, folder: Path, shards: Path, experiment: str, overrides: Sequence[str]) -> None:
    """``python train.py`` in a process of its own, which shows the results at its end.

    An interrupted run goes on; of a finished one the results are shown again.

    Raises:
        CommandError: it has failed.
        UserError: a finished run has lost its network.
    """
    before = (folder / MARKER).exists()
    if before and not _network(folder).exists():
        raise UserError(
            f"{_network(folder)} is missing: delete {folder} to train anew, or name another --run"
        )
    where = (setting("hydra.run.dir", folder), setting("paths.shards", shards))
    programs.call("train.py", f"experiment={experiment}", *where, *overrides)
    if before:
        console = Console()
        console.print(result_table(results(folder)).terminal(console.width))


def _network(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def results(folder: Path) -> list[Any]:
    """What was measured on every set at the end of a run.

    Raises:
        UserError: it is not there any more, or damaged.
    """
    return [_result(folder / "results" / name / "results.json", folder) for name in SETS]


def _result(path: Path, folder: Path) -> Any:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result_table([result])
        return result
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}): delete {folder / MARKER}, and the same command measures anew"
        ) from error


def pictures(folder: Path, shards: Path, count: int, conf: Path = Path("conf")) -> Path:
    """Draw the first images of the open set, their truth and what the network makes of them, with names.

    Returns:
        the PNG.
    """
    segmenter = load_segmenter(_network(folder), conf=conf)
    data = PanopticDataModule(
        val={"toy_open": str(shards / "toy_open")},
        num_workers=0,
        eval_batch_size=1,
        eval_short_side=segmenter.resize.short_side,
        eval_long_side=segmenter.resize.long_side,
    )
    vocabulary = data.vocabulary("toy_open")
    predictor = NetworkPredictor(segmenter.model, vocabulary, segmenter.training)
    rows = []
    for batch, _ in zip(data.eval_loader("toy_open"), range(count), strict=False):
        (prediction,), (truth,) = predictor(batch), batch.truths
        assert truth is not None
        height, width = batch.valid_sizes[0]
        image = batch.images[0, :, :height, :width]
        plain = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        maps = [overlay(image, found, vocabulary.names) for found in (truth.panoptic, prediction.panoptic)]
        plain = np.asarray(Image.fromarray(plain).resize((maps[0].shape[1], maps[0].shape[0])))
        rows.append(side_by_side([plain, *maps]))
    path = folder / "pictures.png"
    Image.fromarray(_stacked(rows)).save(path)
    return path


def _stacked(rows: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, gap), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(padded)


@ends_with_message
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m odise_pl.toyworld.demo", description=__doc__)
    parser.add_argument("supervision", nargs="?", choices=_EXPERIMENTS, default="label")
    parser.add_argument("--run", type=Path, help="folder of the run (default runs/demo, runs/demo_caption)")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="folder of the shard sets")
    parser.add_argument(
        "--count",
        type=positive,
        nargs=3,
        default=(2000, 200, 200),
        metavar=("TRAIN", "VAL", "OPEN"),
        help="pictures of the sets (default 2000 200 200)",
    )
    parser.add_argument("--pictures", type=positive, default=8, help="rows of the sheet")
    add_overrides(
        parser, help="a setting of train.py, such as trainer.max_steps=100; another one needs another --run"
    )
    options = parser.parse_args(arguments)
    caption = options.supervision == "caption"
    folder = options.run or Path("runs", "demo_caption" if caption else "demo")
    if folder.exists() and not folder.is_dir():
        parser.error(f"--run {folder}: is a file, not a folder")
    sizes = [f"--{name}={count}" for name, count in zip(("train", "val", "open"), options.count, strict=True)]
    try:
        with Programs() as programs:
            # in a process of its own: its workers import what their parent did, and painting needs no torch
            programs.call("-m", "odise_pl.toyworld.make", "--out", str(options.shards), *sizes)
            check_origin(folder, options.shards)
            train(programs, folder, options.shards, _EXPERIMENTS[options.supervision], options.overrides)
    except CommandError as error:
        raise CommandError(f"{error} (its --out is --shards here, its run=NAME is --run)") from error
    write_text(folder / "results.md", result_table(results(folder)).markdown())
    sheet = pictures(folder, options.shards, options.pictures)
    print(f"pictures: {sheet} (image, truth, prediction); network: {_network(folder)}")
    print(f"curves: tensorboard --logdir {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
