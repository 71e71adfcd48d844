"""Time panoptic quality against other packages on the same maps, in one run.

    python scripts/bench_panoptic_quality.py --coco ROOT --images 200

ROOT is a folder in COCO's layout (``annotations/panoptic_SPLIT.json`` and its PNG folder); without it
synthetic maps of COCO's size are scored. The prediction is the truth moved by a few pixels. The contenders
take turns in every round, torchmetrics in the first only, and the best pass of each is shown. vernier and
hotcoco are left out when absent; the one gets arrays in memory, the other
PNG files, which is all it reads.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from odise_pl.data.images import decode_ids
from odise_pl.metrics.panoptic_quality import PanopticQuality
from odise_pl.structures import PanopticSegmentation, Segment

CHANNELS = np.array([1, 256, 65536], dtype=np.int32)


@dataclass(frozen=True)
class Maps:
    """Predictions and truths of one set of images, and which of the classes are things."""

    predictions: list[PanopticSegmentation]
    truths: list[PanopticSegmentation]
    isthing: tuple[bool, ...]


@dataclass
class Contender:
    """One way to score all maps.

    Attributes:
        name: its row in the table.
        run: scores everything and returns the panoptic quality.
        rounds: takes part in so many rounds at most.
        wall: seconds an image of the best pass.
        cpu: the same of the processor time of all threads, which other programs disturb less.
        pq: what came out.
    """

    name: str
    run: Callable[[], float]
    rounds: int = 1_000_000
    wall: float = float("inf")
    cpu: float = float("inf")
    pq: float = float("nan")

    def take_turn(self, num_images: int) -> None:
        """One pass over the images."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.pq = self.run()
        self.wall = min(self.wall, (time.perf_counter() - wall) / num_images)
        self.cpu = min(self.cpu, (time.process_time() - cpu) / num_images)


def main() -> None:
    """Measure and print the tables."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    maps = read_coco(arguments.coco, arguments.images) if arguments.coco else synthetic(arguments.images)
    with tempfile.TemporaryDirectory() as folder:
        in_memory, from_files = contenders(maps, Path(folder), arguments.threads)
        for number in range(arguments.rounds):
            for contender in in_memory + from_files:
                if number < contender.rounds:
                    contender.take_turn(len(maps.truths))
    height, width = maps.truths[0].ids.shape
    title = f"{len(maps.truths)} maps of about {height}x{width}; threads: {arguments.threads}"
    Console().print(report(f"In memory, {title}", in_memory), report(f"From PNG files, {title}", from_files))


def contenders(maps: Maps, folder: Path, threads: int) -> tuple[list[Contender], list[Contender]]:
    """Those that score maps in memory and those that read files, this project first in each."""
    in_memory = [Contender("odise_pl", lambda: score(maps)), torchmetrics_contender(maps)]
    if find_spec("vernier"):
        in_memory += vernier_contenders(maps, threads)
    truth, prediction = folder / "truth", folder / "prediction"
    write_coco(truth, maps.truths, maps.isthing)
    write_coco(prediction, maps.predictions, maps.isthing)
    from_files = [Contender("Pillow, odise_pl", lambda: score_files(maps, prediction, truth))]
    if find_spec("hotcoco"):
        from_files.append(hotcoco_contender(truth, prediction))
    return in_memory, from_files


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--coco", type=Path, help="folder in COCO's panoptic layout (default: synthetic maps)"
    )
    parser.add_argument("--images", type=int, default=200, help="at most so many images (default: 200)")
    parser.add_argument("--rounds", type=int, default=10, help="passes over the images (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and vernier (default: 1)")
    return parser.parse_args()


def read_coco(root: Path, count: int) -> Maps:
    """Truth of every panoptic split of a COCO folder, and the prediction made of it."""
    truths: list[PanopticSegmentation] = []
    isthing: tuple[bool, ...] = ()
    for path in sorted((root / "annotations").glob("panoptic_*.json")):
        content = json.loads(path.read_text())
        classes = {c["id"]: i for i, c in enumerate(content["categories"])}
        isthing = tuple(bool(c["isthing"]) for c in content["categories"])
        for annotation in content["annotations"][: count - len(truths)]:
            truths.append(
                read_truth(path.with_suffix("") / annotation["file_name"], annotation, classes, isthing)
            )
    if not truths:
        raise SystemExit(f"no panoptic_*.json with annotations in {root / 'annotations'}")
    return Maps([moved(truth) for truth in truths], truths, isthing)


def read_truth(
    png: Path, annotation: dict[str, Any], classes: dict[int, int], isthing: tuple[bool, ...]
) -> PanopticSegmentation:
    """One map of a COCO panoptic annotation."""
    segments = []
    for s in annotation["segments_info"]:
        label = classes[s["category_id"]]
        segments.append(Segment(s["id"], label, isthing[label], bool(s["iscrowd"])))
    return PanopticSegmentation(read_ids(png), tuple(segments))


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
    """This project's metric, one image an update."""
    metric = PanopticQuality(maps.isthing)
    for prediction, truth in zip(maps.predictions, maps.truths, strict=True):
        metric.update([prediction], [truth])
    return metric.compute().all.pq


def torchmetrics_contender(maps: Maps) -> Contender:
    """torchmetrics, one image an update; it has no rule for crowds, hence another PQ."""
    sides = ([class_instance(panoptic) for panoptic in side] for side in (maps.predictions, maps.truths))
    images = list(zip(*sides, strict=True))
    things = {label for label, thing in enumerate(maps.isthing) if thing}
    stuff = set(range(len(maps.isthing))) - things

    def run() -> float:
        metric = TorchmetricsPanopticQuality(things, stuff, allow_unknown_preds_category=True)
        for prediction, truth in images:
            metric.update(prediction, truth)
        return float(metric.compute())

    return Contender("torchmetrics", run, rounds=1)


def class_instance(panoptic: PanopticSegmentation) -> Tensor:
    """The map as torchmetrics wants it: [1, H, W, 2] of class and instance, class -1 for void."""
    values = np.array([0, *(s.id for s in panoptic.segments)])
    table = np.array([[-1, 0], *([s.category, number] for number, s in enumerate(panoptic.segments))])
    order = np.argsort(values)
    slots = order[np.searchsorted(values[order], panoptic.ids.numpy())]
    return torch.from_numpy(table[slots])[None]


def vernier_contenders(maps: Maps, threads: int) -> list[Contender]:
    """vernier (Rust) on arrays in memory: all of it, and its evaluation alone."""
    import vernier.panoptic as vernier

    logging.disable(logging.INFO)
    labels = [as_uint32(side) for side in (maps.truths, maps.predictions)]
    segments = [segments_by_image(side) for side in (maps.truths, maps.predictions)]
    categories = json.dumps(coco_categories(maps.isthing)).encode()
    evaluator = vernier.Evaluator(parity_mode="strict")

    def load() -> tuple[Any, Any]:
        truth = vernier.Dataset.from_arrays(labels[0], segments[0], categories)
        return truth, vernier.Predictions.from_arrays(labels[1], segments[1])

    loaded = load()
    return [
        Contender("vernier, with loading", lambda: evaluator.evaluate(*load(), num_threads=threads).pq),
        Contender("vernier, loaded before", lambda: evaluator.evaluate(*loaded, num_threads=threads).pq),
    ]


def as_uint32(side: list[PanopticSegmentation]) -> dict[int, np.ndarray]:
    """Maps by image number, as vernier wants them."""
    return {number: panoptic.ids.numpy().astype(np.uint32) for number, panoptic in enumerate(side)}


def segments_by_image(side: list[PanopticSegmentation]) -> bytes:
    """COCO's segments_info by image number, as JSON."""
    return json.dumps({number: segments_info(panoptic) for number, panoptic in enumerate(side)}).encode()


def segments_info(panoptic: PanopticSegmentation) -> list[dict[str, Any]]:
    """Segments as COCO's panoptic JSON has them."""
    values, areas = np.unique(panoptic.ids.numpy(), return_counts=True)
    area = dict(zip(values.tolist(), areas.tolist(), strict=True))
    unused = {"bbox": [0, 0, 1, 1]}
    return [
        {"id": s.id, "category_id": s.category + 1, "iscrowd": int(s.iscrowd), "area": area[s.id], **unused}
        for s in panoptic.segments
    ]


def coco_categories(isthing: tuple[bool, ...]) -> list[dict[str, Any]]:
    """Categories as COCO's panoptic JSON has them."""
    return [
        {"id": label + 1, "name": str(label), "supercategory": "any", "isthing": int(thing)}
        for label, thing in enumerate(isthing)
    ]


def hotcoco_contender(truth: Path, prediction: Path) -> Contender:
    """hotcoco (Rust), which uses every core."""
    from hotcoco.panoptic import PanopticEval

    def run() -> float:
        evaluation = PanopticEval(truth.with_suffix(".json"), prediction.with_suffix(".json"))
        evaluation.evaluate()
        return evaluation.results()["All"]["pq"]

    return Contender("hotcoco (all cores)", run)


def write_coco(folder: Path, side: list[PanopticSegmentation], isthing: tuple[bool, ...]) -> None:
    """PNG files in ``folder`` and the JSON beside it."""
    folder.mkdir()
    annotations, images = [], []
    for number, panoptic in enumerate(side):
        height, width = panoptic.ids.shape
        rgb = (panoptic.ids.numpy()[..., None] // CHANNELS % 256).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
        segments = segments_info(panoptic)
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": coco_categories(isthing)}
    folder.with_suffix(".json").write_text(json.dumps(content))


def score_files(maps: Maps, prediction: Path, truth: Path) -> float:
    """Decode the PNG files and score them with this project's metric."""
    metric = PanopticQuality(maps.isthing)
    for number, (p, t) in enumerate(zip(maps.predictions, maps.truths, strict=True)):
        decoded_prediction = replace(p, ids=read_ids(prediction / f"{number}.png"))
        metric.update([decoded_prediction], [replace(t, ids=read_ids(truth / f"{number}.png"))])
    return metric.compute().all.pq


def report(title: str, contenders: list[Contender]) -> Table:
    """One row each; the ratio is its wall time over that of the first."""
    table = Table(title=title)
    table.add_column("")
    for column in ("ms an image", "CPU ms an image", "times ours", "PQ"):
        table.add_column(column, justify="right")
    for c in contenders:
        ratio = f"{c.wall / contenders[0].wall:.2f}"
        table.add_row(c.name, f"{1000 * c.wall:.3f}", f"{1000 * c.cpu:.3f}", ratio, f"{c.pq:.6f}")
    return table


if __name__ == "__main__":
    main()
