"""Time panoptic quality against other packages on the same maps, in one run.

    python -m scripts.bench_panoptic_quality --coco ROOT --images 200

ROOT is a folder in COCO's layout (``annotations/panoptic_SPLIT.json`` and its PNG folder); without it
synthetic maps of COCO's size are scored. The prediction is the truth moved by a few pixels. The packages take
turns, torchmetrics once, and the best pass of each is shown. hotcoco reads PNG files, so ours is timed with
and without reading them, in as many threads. vernier takes part if it is installed; it first copies the maps
into data sets of its own, so it is timed with and without that.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from hotcoco.panoptic import PanopticEval
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics.detection import PanopticQuality as TorchmetricsPanopticQuality

from odise_pl.data.label_maps import decode_ids, encode_ids
from odise_pl.metrics.panoptic_quality import count_matches, panoptic_quality
from odise_pl.structures import PanopticSegmentation, Segment
from scripts.figures import write_figures

try:
    from vernier import panoptic as vernier
except ImportError:
    vernier = None

TORCHMETRICS = "torchmetrics, maps in memory"
Pair = tuple[PanopticSegmentation, PanopticSegmentation]


@dataclass(frozen=True)
class Maps:
    """Predictions and truths of one set of images, and which of the classes are things."""

    predictions: list[PanopticSegmentation]
    truths: list[PanopticSegmentation]
    isthing: tuple[bool, ...]

    def pairs(self) -> Iterable[Pair]:
        """Prediction and truth of each image."""
        return zip(self.predictions, self.truths, strict=True)


def main(
    coco: Annotated[Path | None, typer.Option(help="folder in COCO's panoptic layout")] = None,
    images: Annotated[int, typer.Option(help="at most so many images")] = 200,
    rounds: Annotated[int, typer.Option(help="passes over the images")] = 10,
    threads: Annotated[int, typer.Option(help="threads of each package")] = 1,
    file: Annotated[
        Path | None, typer.Option("--json", help="write the figures for the documentation")
    ] = None,
) -> None:
    """Measure and print the table."""
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # hotcoco and vernier
    maps = read_coco(coco, images) if coco else synthetic(images)
    with tempfile.TemporaryDirectory() as folder:
        truth, prediction = Path(folder, "truth"), Path(folder, "prediction")
        write_coco(truth, maps.truths, maps.isthing)
        write_coco(prediction, maps.predictions, maps.isthing)
        programs: dict[str, Callable[[], float]] = {
            "odise_pl, maps in memory": lambda: score(maps.pairs(), maps.isthing),
            TORCHMETRICS: lambda: score_by_torchmetrics(maps),
            "odise_pl, from PNG files": lambda: score(
                read_pairs(maps, prediction, truth, threads), maps.isthing
            ),
            "hotcoco, from PNG files": lambda: score_by_hotcoco(truth, prediction),
        }
        if vernier is not None:
            inputs = vernier_inputs(maps)
            sets = vernier_sets(*inputs)
            programs["vernier, maps in memory"] = lambda: score_by_vernier(*vernier_sets(*inputs), threads)
            programs["vernier, its data sets in memory"] = lambda: score_by_vernier(*sets, threads)
        infinite = (float("inf"), float("inf"))
        seconds, found = dict.fromkeys(programs, infinite), {}
        for number in range(rounds):
            for name, run in programs.items():
                if number == 0 or name != TORCHMETRICS:
                    started = time.perf_counter(), time.process_time()
                    found[name] = run()
                    passed = time.perf_counter() - started[0], time.process_time() - started[1]
                    seconds[name] = min(seconds[name][0], passed[0]), min(seconds[name][1], passed[1])
    height, width = maps.truths[0].ids.shape
    count = len(maps.truths)
    table = Table(title=f"{count} maps of about {height}x{width}; threads: {threads}")
    for column in ("", "ms an image", "processor ms", "PQ"):
        table.add_column(column, justify="right" if column else "left")
    milliseconds = {name: [1000 * one / count for one in pair] for name, pair in seconds.items()}
    for name, pq in found.items():
        table.add_row(name, *(f"{one:.3f}" for one in milliseconds[name]), f"{pq:.6f}")
    Console().print(table)
    if file:
        rows = [
            {"name": name, "ms": milliseconds[name][0], "processor_ms": milliseconds[name][1], "pq": pq}
            for name, pq in found.items()
        ]
        source = "COCO maps" if coco else "synthetic maps"
        what = f"Panoptic quality of {count} {source} of about {height} x {width}; threads: {threads}."
        write_figures(file, what, {"images": count, "rows": rows})


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


def score(pairs: Iterable[Pair], isthing: tuple[bool, ...]) -> float:
    """This project's metric."""
    counts = torch.zeros(4, len(isthing), dtype=torch.int64)
    for pair in pairs:
        counts += count_matches(*pair, len(isthing))
    return panoptic_quality(counts, isthing).all.pq


def score_by_torchmetrics(maps: Maps) -> float:
    """torchmetrics has no rule for crowds, hence another PQ."""
    things = {label for label, thing in enumerate(maps.isthing) if thing}
    stuff = set(range(len(maps.isthing))) - things
    metric = TorchmetricsPanopticQuality(things, stuff, allow_unknown_preds_category=True)
    for prediction, truth in maps.pairs():
        metric.update(class_instance(prediction), class_instance(truth))
    return float(metric.compute())


def class_instance(panoptic: PanopticSegmentation) -> Tensor:
    """The map as torchmetrics wants it: [1, H, W, 2] of class and instance, class -1 for void."""
    values = np.array([0, *(s.id for s in panoptic.segments)])
    table = np.array([[-1, 0], *([s.category, number] for number, s in enumerate(panoptic.segments))])
    order = np.argsort(values)
    return torch.from_numpy(table[order[np.searchsorted(values[order], panoptic.ids.numpy())]])[None]


def score_by_hotcoco(truth: Path, prediction: Path) -> float:
    """hotcoco is written in Rust."""
    evaluation = PanopticEval(truth.with_suffix(".json"), prediction.with_suffix(".json"))
    evaluation.evaluate()
    return evaluation.results()["All"]["pq"]


def vernier_inputs(maps: Maps) -> tuple[Any, Any]:
    """Maps and descriptions of truth and prediction, as vernier takes them."""
    categories = [{"id": c, "name": str(c), "isthing": int(thing)} for c, thing in enumerate(maps.isthing)]
    truths, predictions = (
        (
            {number: one.ids.numpy().view(np.uint32) for number, one in enumerate(side)},
            json.dumps({number: describe(one) for number, one in enumerate(side)}).encode(),
        )
        for side in (maps.truths, maps.predictions)
    )
    return (*truths, json.dumps(categories).encode()), predictions


def vernier_sets(truth: Any, prediction: Any) -> tuple[Any, Any]:
    """Copies as vernier holds them."""
    return vernier.Dataset.from_arrays(*truth), vernier.Predictions.from_arrays(*prediction)


def score_by_vernier(truth: Any, prediction: Any, threads: int) -> float:
    """vernier is written in Rust."""
    return vernier.Evaluator(parity_mode="strict").evaluate(truth, prediction, num_threads=threads).pq


def read_pairs(maps: Maps, prediction: Path, truth: Path, threads: int) -> Iterator[Pair]:
    """The same maps from PNG files."""

    def read(number: int) -> Pair:
        one, other = (
            replace(side[number], ids=read_ids(folder / f"{number}.png"))
            for side, folder in ((maps.predictions, prediction), (maps.truths, truth))
        )
        return one, other

    numbers = range(len(maps.truths))
    if threads == 1:
        yield from map(read, numbers)
    else:
        with ThreadPoolExecutor(threads) as pool:
            yield from pool.map(read, numbers)


def describe(panoptic: PanopticSegmentation) -> list[dict[str, int]]:
    """The segments of a map as in COCO's files."""
    return [
        {
            "id": s.id,
            "category_id": s.category,
            "iscrowd": int(s.iscrowd),
            "area": int((panoptic.ids == s.id).sum()),
        }
        for s in panoptic.segments
    ]


def write_coco(folder: Path, side: list[PanopticSegmentation], isthing: tuple[bool, ...]) -> None:
    """PNG files in ``folder`` and the JSON beside it."""
    folder.mkdir()
    annotations, images = [], []
    for number, panoptic in enumerate(side):
        ids = panoptic.ids.numpy()
        (folder / f"{number}.png").write_bytes(encode_ids(ids))
        images.append({"id": number, "height": ids.shape[0], "width": ids.shape[1]})
        annotations.append(
            {"image_id": number, "file_name": f"{number}.png", "segments_info": describe(panoptic)}
        )
    categories = [{"id": c, "name": str(c), "isthing": int(thing)} for c, thing in enumerate(isthing)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    folder.with_suffix(".json").write_text(json.dumps(content))


if __name__ == "__main__":
    typer.run(main)
