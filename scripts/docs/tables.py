"""The tables of the documentation, from the content of docs/figures and the paper's numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from odise_pl.metrics.tables import NONE, Table
from odise_pl.runs.comparison import Row, column_title, difference_table, from_json, score_table
from odise_pl.runs.published import ABLATIONS, BENCHMARKS, SPLITS, Published

Files = dict[str, Any]
_SCORES = {"PQ": "pq", "mAP": "map", "mIoU": "miou"}
_PAPER = ("paper: COCO PQ", "paper: ADE20K PQ")
_MODELS = {
    model: Published(ade20k=sets["ade150"]["pq"], coco=sets["coco"]["pq"])
    for model, sets in BENCHMARKS.items()
}
_TITLES = {
    "label": "supervised by labels",
    "caption": "supervised by captions",
    "label, random diffusion weights": "control: labels, untrained diffusion model",
}
_SMALL_WORLD = (
    "supervision",
    "timestep",
    "captioner",
    "classifier",
    "representation",
    "effort",
    "recipe",
    "method",
)
_COSTS = (
    ("parameters (M)", "parameters_million", 1),
    ("trainable (M)", "trained_million", 1),
    ("ms/image", "ms", 0),
)
_PATCHES = ("things", "stuff")
_BENCHMARKS = {
    "coco": "COCO",
    "ade150": "ADE20K, 150 classes",
    "ade847": "ADE20K, 847 classes",
    "pc59": "PASCAL-Context, 59 classes",
    "pc459": "PASCAL-Context, 459 classes",
    "pas21": "Pascal VOC, 21 classes",
}


def scores(files: Files, name: str, kind: str = "pq") -> Table:
    """A table of the paper beside the small world's, with both orders."""
    rows = _rows(files, name)
    costs = [files["small_world"].get("costs", {}).get(row.name) for row in rows]
    more = {
        title: [NONE if cost is None else f"{cost[key]:.{digits}f}" for cost in costs]
        for title, key, digits in _COSTS
    }
    return score_table(name, rows, more if name == "method" and kind != "map" else None, kind)


def differences(files: Files, name: str, kind: str = "pq") -> Table:
    """The differences in a table of the small world, and which are decided."""
    return difference_table(name, _rows(files, name), kind)


def _rows(files: Files, name: str) -> list[Row]:
    return from_json(files["small_world"]["tables"][name])


def results(files: Files) -> Table:
    """The models of the paper and of the small world, and the control."""
    columns = {
        "small world: toy_val PQ": "toy_val.pq",
        "small world: toy_open PQ, base": "toy_open.pq_base",
        "small world: toy_open PQ, novel": "toy_open.pq_novel",
    }
    cells = tuple(
        (
            _TITLES[row.name],
            *_paper(_MODELS.get(row.name)),
            *(one.text() if (one := row.estimate(column)) else NONE for column in columns.values()),
        )
        for row in _rows(files, "supervision")
    )
    return Table("results", ("model", *_PAPER, *columns), cells)


def demo_runs(figures: Files) -> list[dict[str, Any]]:
    """All runs of the demo; the last is the one that the pictures show."""
    last = {name: value for name, value in figures.items() if name not in ("about", "machines")}
    return [*figures.get("machines", ()), last]


def demo(files: Files) -> Table:
    """Minutes and scores of ``make demo`` by machine."""
    cells = tuple(
        (
            run["name"],
            f"{run['minutes']}",
            *(
                ", ".join(f"{scores[key]:.1f}" for key in _SCORES.values())
                for scores in (run["toy_val"], run["toy_open"]["base"], run["toy_open"]["novel"])
            ),
        )
        for run in demo_runs(files["demo"])
    )
    return Table("demo", ("machine", "minutes", "toy_val", "toy_open, base", "toy_open, novel"), cells)


def small_world_limits(files: Files) -> Table:
    """PQ with true masks or names in place of predicted ones, by run."""
    runs = files["limits"]["runs"]
    keys = (("toy_val", "pq"), ("toy_open", "pq_base"), ("toy_open", "pq_novel"))
    columns = {
        f"{column_title(f'{name}.{key}')}, {_steps(run)}": (run, name, key)
        for name, key in keys
        for run in runs
    }
    cells = tuple(
        (row, *(f"{runs[run]['rows'][name][row][key]:.1f}" for run, name, key in columns.values()))
        for row in next(iter(runs.values()))["rows"]["toy_open"]
    )
    return Table("limits", ("with", *columns), cells)


def small_world_sizes(files: Files) -> Table:
    """The number of true things of ``toy_open`` by size, and the percentages that are found, by run."""
    runs = {_steps(run): found["sizes"]["toy_open"] for run, found in files["limits"]["runs"].items()}
    first = next(iter(runs.values()))
    columns = {f"{key}, {run}": (run, key) for key in first["above 1,000"] if key != "things" for run in runs}
    cells = tuple(
        (size, f"{first[size]['things']}", *(f"{runs[run][size][key]:.0f}" for run, key in columns.values()))
        for size in first
    )
    return Table("limits_by_size", ("pixels", "things", *columns), cells)


def _steps(run: str) -> str:
    """How long a run of the small world's tables was trained, from its folder."""
    steps = re.search(r"(\d+)_steps", run)
    return f"{int(steps[1]) if steps else 400:,} steps"


def probe(files: Files) -> Table:
    """PQ of base and novel classes of linear probes, by conditioning and timestep."""
    steps = files["probe"]["timesteps"]
    cells = tuple(
        (name, *(_base_and_novel(row[f"t{step}"]) if f"t{step}" in row else NONE for step in steps))
        for name, row in files["probe"]["conditioning"].items()
    )
    return Table("probe", ("conditioning", *(f"t = {step}" for step in steps)), cells)


def _base_and_novel(groups: dict[str, dict[str, float]]) -> str:
    return " / ".join(f"{group['pq']:.1f}" for group in groups.values())


def memory(files: Files) -> Table:
    """Images per forward pass by card."""
    cards = tuple(f"{size} GB" for size in files["memory"]["cards"])
    cells = tuple(
        (row["strategy"], row["activations"], *(str(number or NONE) for number in row["images"]))
        for row in files["memory"]["rows"]
    )
    return Table("memory", ("strategy", "activations", *cards), cells)


def cards(files: Files) -> Table:
    """Images per forward pass of a single device, by the memory of the card."""
    kept, recomputed, *_ = files["memory"]["rows"]
    names = ("images", "images, with recomputed activations")
    cells = tuple(
        (name, *(str(number or NONE) for number in row["images"]))
        for name, row in zip(names, (kept, recomputed), strict=True)
    )
    return Table("cards", ("GPU memory", *(f"{size} GB" for size in files["memory"]["cards"])), cells)


def windows(files: Files) -> Table:
    """Cost of one evaluated image by its size."""
    cells = tuple(
        (
            row["name"].replace("x", " x "),
            str(row["windows"]),
            f"{row['features_s']:.0f} s",
            f"{row['whole_s']:.0f} s",
            f"{row['peak_gib']:.1f} GiB",
        )
        for row in files["windows"]["rows"]
    )
    return Table("windows", ("image", "windows", "features", "whole evaluation", "peak memory"), cells)


def backbones(files: Files) -> Table:
    """Cost of every frozen network."""
    cells = tuple(
        (
            f"`{row['name']}`",
            f"{row['parameters_million']:.1f}",
            f"{row['window']} → {row['input_size']}",
            str(row["windows"]),
            (f"{row['features_s']:.2g}" if row["features_s"] < 99.5 else f"{row['features_s']:.0f}") + " s",
            f"{row['peak_gib']:.1f} GiB",
        )
        for row in files["backbones"]["rows"]
    )
    return Table(
        "backbones", ("backbone", "parameters (M)", "window", "windows", "features", "peak memory"), cells
    )


def step(files: Files) -> Table:
    """Processor seconds and memory of a step before and after the work on speed."""
    cells = []
    for name, parts in files["step"]["steps"].items():
        for part, cost in _by_cost(parts):
            seconds = (f"{cost[key]:.1f}" for key in ("before_seconds", "seconds"))
            memory = (f"{cost[key]:.1f}" for key in ("before_peak_gib", "peak_gib"))
            cells.append((name, part, *seconds, *memory))
    header = ("step", "part", "before (s)", "now (s)", "peak before (GiB)", "peak now (GiB)")
    return Table("step", header, tuple(cells))


def profile(files: Files, name: str) -> Table:
    """Processor seconds of each part of a step beside those that its operations need."""
    cells = tuple(
        (mode, part, f"{cost['seconds']:.2f}", f"{cost['gflop']:.0f}", f"{cost['limit_s']:.2f}")
        for mode, parts in files[name]["steps"].items()
        for part, cost in _by_cost(parts)
    )
    return Table(name, ("step", "part", "seconds", "GFLOP", "limit (s)"), cells)


def _by_cost(parts: dict[str, dict[str, float]]) -> list[tuple[str, dict[str, float]]]:
    """The most expensive part first, the sum last."""
    return sorted(parts.items(), key=lambda item: (item[0] == "all", -item[1]["seconds"]))


def loading(files: Files) -> Table:
    """Samples per second of one core, and the shares of the parts."""
    rows = files["loading"]["rows"]
    cells = tuple(
        (
            row["name"],
            f"{row['per_second']:.0f}",
            f"{row['ms']:.1f}",
            *(f"{100 * share:.0f} %" for share in row["shares"].values()),
        )
        for row in rows
    )
    return Table("loading", ("pass", "samples/s", "ms a sample", *rows[0]["shares"]), cells)


def startup(files: Files) -> Table:
    """Processor seconds of starting programs."""
    cells = tuple(
        (f"`{row['name']}`", f"{row['before']:.2f}", f"{row['after']:.2f}")
        for row in files["startup"]["rows"]
    )
    return Table("startup", ("program", "before (s)", "now (s)"), cells)


def panoptic_quality(files: Files) -> Table:
    """Time and result of panoptic quality by package."""
    cells = tuple(
        (row["name"], f"{row['ms']:.1f}", f"{row['pq']:.3f}") for row in files["panoptic_quality"]["rows"]
    )
    return Table("panoptic_quality", ("package", "ms an image", "PQ"), cells)


def benchmarks(_: Files) -> Table:
    """The paper's six benchmarks."""
    cells = tuple(
        (title, *(_one(BENCHMARKS[model][name].get(key)) for model in BENCHMARKS for key in _SCORES.values()))
        for name, title in _BENCHMARKS.items()
    )
    header = ("benchmark", *(f"{model} {score}" for model in BENCHMARKS for score in _SCORES))
    return Table("benchmarks", header, cells)


def best_method(files: Files) -> Table:
    """The search for the best combination on the small world."""
    rows = files["best_method"]["rows"]
    keys = ("toy_val.pq", "toy_open.pq_base", "toy_open.pq_novel")
    cells = tuple(
        (row["round"], row["name"], *(_one(row[key]) for key in keys), "yes" if row["taken"] else "no")
        for row in rows
    )
    header = ("round", "choice", "toy_val", "toy_open, base", "toy_open, novel", "taken")
    return Table("best_method", header, cells)


def splits(_: Files) -> Table:
    """Published numbers of zero-shot splits."""
    cells = tuple(
        (f"`{split}`", method, *map(_one, scores))
        for split, methods in SPLITS.items()
        for method, scores in methods.items()
    )
    return Table("splits", ("`split=`", "method", "seen mIoU", "unseen mIoU", "hIoU"), cells)


def representations(_: Files) -> Table:
    """The paper's frozen representations."""
    (rows,) = (ablation.rows for ablation in ABLATIONS if ablation.name == "backbone")
    cells = tuple((f"`{name}`", *_paper(numbers)) for name, numbers in rows.items())
    return Table("representations", ("`backbone=`", "COCO PQ", "ADE20K PQ"), cells)


def representation_probe(files: Files) -> Table:
    """What a linear map reads from the small world's frozen networks."""
    cells = tuple(
        (f"`{name}`", *(_one(shares[made][kind]) for made in ("trained", "random") for kind in _PATCHES))
        for name, shares in files["representation_probe"]["backbones"].items()
    )
    header = ("`backbone=`", *_PATCHES, *(f"{kind}, untrained" for kind in _PATCHES))
    return Table("representation_probe", header, cells)


def _one(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def _paper(numbers: Published | None) -> tuple[str, str]:
    return (_one(numbers.coco), _one(numbers.ade20k)) if numbers else (NONE, NONE)


TABLES: dict[str, Callable[[Files], Table]] = {
    "results": results,
    "demo": demo,
    "limits": small_world_limits,
    "limits_by_size": small_world_sizes,
    "probe": probe,
    "memory": memory,
    "cards": cards,
    "windows": windows,
    "backbones": backbones,
    "step": step,
    "profile": partial(profile, name="profile"),
    "profile_toy": partial(profile, name="profile_toy"),
    "profile_bf16": partial(profile, name="profile_bf16"),
    "loading": loading,
    "startup": startup,
    "panoptic_quality": panoptic_quality,
    "benchmarks": benchmarks,
    "representations": representations,
    "representation_probe": representation_probe,
    "splits": splits,
    "best_method": best_method,
    **{name: partial(scores, name=name) for name in _SMALL_WORLD},
    **{f"{name}_differences": partial(differences, name=name) for name in _SMALL_WORLD},
    "method_map": partial(scores, name="method", kind="map"),
    "method_miou": partial(scores, name="method", kind="miou"),
    "method_miou_differences": partial(differences, name="method", kind="miou"),
}
