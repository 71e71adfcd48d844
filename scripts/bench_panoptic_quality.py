"""Time panoptic quality against other packages on the same maps, in one run.

    python scripts/bench_panoptic_quality.py --coco ROOT --images 200

ROOT is a folder in COCO's layout (``annotations/panoptic_SPLIT.json`` and its PNG folder); without it
synthetic maps of COCO's size are scored. The prediction is the truth moved by a few pixels. The packages take
turns, torchmetrics once, and the best pass of each is shown. hotcoco reads PNG files, so ours is timed with
and without reading them.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from figures import write_figures
from hotcoco.panoptic import PanopticEval
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from odise_pl.data.label_maps import decode_ids, encode_ids
from odise_pl.metrics.panoptic_quality import count_matches, panoptic_quality
from odise_pl.structures import PanopticSegmentation, Segment

TORCHMETRICS = "torchmetrics, maps in memory"


@dataclass(frozen=True)
class Maps:
    """Predictions and truths of one set of images, and which of the classes are things."""

    predictions: list[PanopticSegmentation]
    truths: list[PanopticSegmentation]
    isthing: tuple[bool, ...]


def main(
    coco: Annotated[Path | None, typer.Option(help="folder in COCO's panoptic layout")] = None,
    images: Annotated[int, typer.Option(help="at most so many images")] = 200,
    rounds: Annotated[int, typer.Option(help="passes over the images")] = 10,
    threads: Annotated[int, typer.Option(help="threads of torch")] = 1,
    file: Annotated[
        Path | None, typer.Option("--json", help="write the figures for the documentation")
    ] = None,
) -> None:
    """Measure and print the table."""
    torch.set_num_threads(threads)
    maps = read_coco(coco, images) if coco else synthetic(images)
    with tempfile.TemporaryDirectory() as folder:
        truth, prediction = Path(folder, "truth"), Path(folder, "prediction")
        write_coco(truth, maps.truths, maps.isthing)
        write_coco(prediction, maps.predictions, maps.isthing)
        programs: dict[str, Callable[[], float]] = {
            "odise_pl, maps in memory": lambda: score(maps),
            TORCHMETRICS: lambda: score_by_torchmetrics(maps),
            "odise_pl, from PNG files": lambda: score(read_maps(maps, prediction, truth)),
            "hotcoco, from PNG files, all cores": lambda: score_by_hotcoco(truth, prediction),
        }
        seconds, found = dict.fromkeys(programs, float("inf")), {}
        for number in range(rounds):
            for name, run in programs.items():
                if number == 0 or name != TORCHMETRICS:
                    started = time.perf_counter()
                    found[name] = run()
                    seconds[name] = min(seconds[name], time.perf_counter() - started)
    height, width = maps.truths[0].ids.shape
    count = len(maps.truths)
    table = Table(title=f"{count} maps of about {height}x{width}; threads: {threads}")
    for column in ("", "ms an image", "PQ"):
        table.add_column(column, justify="right" if column else "left")
    for name, pq in found.items():
        table.add_row(name, f"{1000 * seconds[name] / count:.3f}", f"{pq:.6f}")
    Console().print(table)
    if file:
        rows = [{"name": name, "ms": 1000 * seconds[name] / count, "pq": pq} for name, pq in found.items()]
        source = "COCO maps" if coco else "synthetic maps"
        what = f"Panoptic quality of {count} {source} of about {height} x {width}; threads: {threads}."
        command = (
            f"python scripts/bench_panoptic_quality.py {'--coco ROOT ' if coco else ''}--images {images}"
        )
        write_figures(file, what, command, {"images": count, "rows": rows})


def read_coco(root: Path, count: int) -> Maps:
    """Truth of every panoptic split of a COCO folder, and the prediction made of it."""
    truths: list[PanopticSegmentation] = []
    isthing: tuple[bool, ...] = ()
    for path in sorted((root / "annotations").glob("panoptic_*.json")):
        content = json.loads(path.read_text())
        classes = {c["id"]: i for i, c in enumerate(content["categories"])}
        isthing = tuple(bool(c["isthing"]) for c in content["categories"])
        for annotation in content["annotations"][: count - len(truths)]:
            png = path.with_suffix("") / annotation["file_name"]
            labels = [classes[s["category_id"]] for s in annotation["segments_info"]]
            segments = tuple(
                Segment(s["id"], label, isthing[label], bool(s["iscrowd"]))
                for s, label in zip(annotation["segments_info"], labels, strict=True)
            )
            truths.append(PanopticSegmentation(read_ids(png), segments))
    if not truths:
        raise SystemExit(f"no panoptic_*.json with annotations in {root / 'annotations'}")
    return Maps([moved(truth) for truth in truths], truths, isthing)


def read_ids(png: Path) -> Tensor:
    """Segment ids int32 [H, W] of a PNG in COCO's colour code."""
    return torch.from_numpy(decode_ids(png.read_bytes()))


def synthetic(count: int) -> Maps:
    """Maps of 480x640 with about twenty ragged segments over void, a few of them crowds."""
    rng = np.random.default_rng(0)
    isthing = tuple(label < 80 for label in range(133))
    truths = [synthetic_truth(rng, isthing) for _ in range(count)]
    return Maps([moved(truth) for truth in truths], truths, isthing)


def synthetic_truth(rng: np.random.Generator, isthing: tuple[bool, ...]) -> PanopticSegmentation:
    """Ellipses with ragged borders."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float32)
    ids = np.zeros((480, 640), dtype=np.int32)
    for value in rng.choice(2**24 - 1, 24, replace=False) + 1:
        (y, x), (a, b) = rng.uniform(0, (480, 640)), rng.uniform(20, 200, 2)
        ragged = 1 + 0.15 * np.kron(rng.standard_normal((120, 80)), np.ones((4, 8)))
        ids[((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < ragged] = value
    values = np.unique(ids[ids > 0]).tolist()
    labels = rng.choice(len(isthing), len(values), replace=False).tolist()  # so that stuff comes once
    crowds = (rng.random(len(values)) < 0.05).tolist()
    segments = [
        Segment(value, label, isthing[label], crowd and isthing[label])
        for value, label, crowd in zip(values, labels, crowds, strict=True)
    ]
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


def moved(truth: PanopticSegmentation) -> PanopticSegmentation:
    """The truth moved by (5, 7) pixels, as a prediction."""
    ids = torch.zeros_like(truth.ids)
    ids[5:, 7:] = truth.ids[:-5, :-7]
    seen = set(np.unique(ids.numpy()).tolist())
    return PanopticSegmentation(ids, tuple(replace(s, iscrowd=False) for s in truth.segments if s.id in seen))


def score(maps: Maps) -> float:
    """This project's metric."""
    pairs, classes = zip(maps.predictions, maps.truths, strict=True), len(maps.isthing)
    counts = sum(
        (count_matches(*pair, classes) for pair in pairs), torch.zeros(4, classes, dtype=torch.int64)
    )
    return panoptic_quality(counts, maps.isthing).all.pq


def score_by_torchmetrics(maps: Maps) -> float:
    """torchmetrics has no rule for crowds, hence another PQ."""
    things = {label for label, thing in enumerate(maps.isthing) if thing}
    stuff = set(range(len(maps.isthing))) - things
    metric = TorchmetricsPanopticQuality(things, stuff, allow_unknown_preds_category=True)
    for prediction, truth in zip(maps.predictions, maps.truths, strict=True):
        metric.update(class_instance(prediction), class_instance(truth))
    return float(metric.compute())


def class_instance(panoptic: PanopticSegmentation) -> Tensor:
    """The map as torchmetrics wants it: [1, H, W, 2] of class and instance, class -1 for void."""
    values = np.array([0, *(s.id for s in panoptic.segments)])
    table = np.array([[-1, 0], *([s.category, number] for number, s in enumerate(panoptic.segments))])
    order = np.argsort(values)
    return torch.from_numpy(table[order[np.searchsorted(values[order], panoptic.ids.numpy())]])[None]


def score_by_hotcoco(truth: Path, prediction: Path) -> float:
    """hotcoco is written in Rust, and uses every core."""
    evaluation = PanopticEval(truth.with_suffix(".json"), prediction.with_suffix(".json"))
    evaluation.evaluate()
    return evaluation.results()["All"]["pq"]


def read_maps(maps: Maps, prediction: Path, truth: Path) -> Maps:
    """The same maps from PNG files."""
    return Maps(*(
        [replace(panoptic, ids=read_ids(folder / f"{number}.png")) for number, panoptic in enumerate(side)]
        for folder, side in ((prediction, maps.predictions), (truth, maps.truths))
    ), maps.isthing)  # fmt: skip


def write_coco(folder: Path, side: list[PanopticSegmentation], isthing: tuple[bool, ...]) -> None:
    """PNG files in ``folder`` and the JSON beside it."""
    folder.mkdir()
    annotations, images = [], []
    for number, panoptic in enumerate(side):
        ids = panoptic.ids.numpy()
        (folder / f"{number}.png").write_bytes(encode_ids(ids))
        images.append({"id": number, "height": ids.shape[0], "width": ids.shape[1]})
        segments: list[dict[str, Any]] = [
            {
                "id": s.id,
                "category_id": s.category,
                "iscrowd": int(s.iscrowd),
                "area": int((ids == s.id).sum()),
            }
            for s in panoptic.segments
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": c, "name": str(c), "isthing": int(thing)} for c, thing in enumerate(isthing)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    folder.with_suffix(".json").write_text(json.dumps(content))


if __name__ == "__main__":
    typer.run(main)
