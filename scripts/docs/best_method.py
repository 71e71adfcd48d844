"""Find the best combination of settings on the small world: ``python -m scripts.docs.best_method``.

Each round adds at most one choice to the best combination so far. What changes training is trained, as long
as a row of the table of methods; what only changes inference is evaluated. PQ of novel classes decides. Its
pictures, and the seed of the trainings, are not those of the tables. Stop it at any time and run it again:
finished runs are skipped, interrupted ones resume.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odise_pl.runs.finished import find_runs
from scripts.docs.comparisons import BUDGET, RUNS
from scripts.docs.small_world import execute
from scripts.figures import write_figures

FIGURES = Path("docs/figures/best_method.json")
PICTURES, PICTURES_SEED, SEED = Path("data/shards_choice"), 1, 10
NAME, START, DECIDES = "best_method", "ODISE, labels", "toy_open.pq_novel"
LEAST_GAIN = 0.1  # of a choice, in points; with less, the simpler combination stays
_SETS = [f"data.val.{name}={PICTURES / name}" for name in ("toy_val", "toy_open")]
_SCORES = ("toy_val.pq", "toy_open.pq_base", DECIDES)
_RATE = "++optimizer.lr_scale={backbone.features: 0.1}"
_PROMPTS = '["a photo of a {}.", "a picture of a {}.", "there is a {}.", "an image of a {}."]'


@dataclass(frozen=True)
class Round:
    """Candidates for one more choice, by name; ``trains``: they change more than inference."""

    candidates: Mapping[str, Sequence[str]]
    trains: bool = True


ROUNDS = {
    "network": Round(
        {"trained convolutions": ("backbone=toy_supervised_conv", "backbone.trained=true", _RATE)}
    ),
    "supervision": Round(
        {
            "masks without classes, named by CLIP": (
                "model.supervision=mask",
                "classifier=discriminative",
                "criterion.weights.classification=0",
                "model.inference.object_threshold=0.5",
                "model.inference.overlap_threshold=0.5",
            )
        }
    ),
    "head": Round(
        {
            "masks in CLIP's space": ("model.head.embed_dim=null", "model.head.query_norm=false"),
            "32 queries": ("model.head.queries=32",),
        }
    ),
    "training": Round(
        {
            "convolutions at the full rate": ("optimizer.lr_scale=null",),
            "no object weighs 0.1": ("criterion.no_object_weight=0.1",),
            "stronger colour jitter": ("data.color_jitter=0.6",),
        }
    ),
    "second network": Round(
        {
            "the diffusion model": (
                "backbone=two",
                "backbone@backbone.first=toy",
                "backbone@backbone.second=toy_supervised_conv",
                "backbone.second.trained=true",
                "backbone.input_size=128",
                "backbone.window=128",
                "backbone.channels=256",
            )
        }
    ),
    "timesteps": Round({"three, fused by a learned projection": ("backbone.first.timesteps=[0,100,200]",)}),
    "CLIP": Round({"convolutional, its features in the masks": ("clip=toy_conv", "fusion.regions=pooled")}),
    "names": Round({"CLIP on crops": ("fusion.regions=cropped",)}, trains=False),
    "objectness": Round(
        {f"COAT, {share}": (f"fusion.objectness_share={share}",) for share in (0.25, 0.5, 0.75)}, trains=False
    ),
    "prompts": Round({"four prompts": (f"fusion.clip_prompt={_PROMPTS}",)}, trains=False),
    "share": Round(
        {f"CLIP, {share} for novel classes": (f"fusion.unseen_share={share}",) for share in (0.4, 0.6, 1.0)},
        trains=False,
    ),
}


def search(score: Callable[[Path, list[str]], Mapping[str, float]]) -> list[dict[str, Any]]:
    """Run all rounds.

    Args:
        score: executes a command, and gives the scores that it leaves in a folder.

    Returns:
        for each candidate its round, name and scores, and whether it was taken.
    """
    trained, settings, inference = _folder("start"), list[str](), list[str]()
    scores = score(trained, _train(trained, settings))
    best: dict[str, Any] = {"round": "start", "name": START, "taken": True, **scores}
    rows = [best]
    for title, one in ROUNDS.items():
        found: list[dict[str, Any]] = []
        for name, added in one.candidates.items():
            folder = _folder(title, name)
            command = (
                _train(folder, _with(settings, added))
                if one.trains
                else _evaluate(folder, trained, [*inference, *added])
            )
            found.append({"round": title, "name": name, "taken": False, **score(folder, command)})
        rows += found
        winner = max(found, key=lambda row: row[DECIDES])
        if winner[DECIDES] > best[DECIDES] + LEAST_GAIN:
            best, winner["taken"] = winner, True
            added = one.candidates[winner["name"]]
            if one.trains:
                trained, settings = _folder(title, winner["name"]), _with(settings, added)
            else:
                inference += added
    return rows


def _with(settings: list[str], added: Sequence[str]) -> list[str]:
    """Both; another backbone replaces the settings of the first."""
    if any(word.startswith("backbone=") for word in added):
        settings = [word for word in settings if not word.startswith("backbone")]
    return [*settings, *added]


def _folder(*names: str) -> Path:
    return RUNS / NAME / Path(*(re.sub(r"\W+", "_", name) for name in names))


def _train(folder: Path, settings: Sequence[str]) -> list[str]:
    own = ["experiment=toy", *BUDGET, f"seed={SEED}", *settings]
    return ["odise", "train", f"run={folder.relative_to(RUNS)}", *own, *_SETS]


def _evaluate(folder: Path, trained: Path, settings: Sequence[str]) -> list[str]:
    own = ["data=toy", "trainer=cpu", *settings]
    return ["odise", "evaluate", f"run={folder.relative_to(RUNS)}", f"ckpt={trained}", *own, *_SETS]


def run(folder: Path, command: list[str]) -> Mapping[str, float]:
    """Scores in percent of a finished run, which the command makes.

    Raises:
        SystemExit: the command failed.
    """
    if not execute(command):
        raise SystemExit(1)
    scores = find_runs(folder)[0].scores
    return {name: 100 * scores[name.partition(".")[0]][name.partition(".")[2]] for name in _SCORES}


def main() -> None:
    """The command."""
    paint = ["odise", "toyworld", "make"]
    for command in (paint, [*paint, "--out", str(PICTURES), "--seed", str(PICTURES_SEED), "--train", "1"]):
        if not execute(command):
            raise SystemExit(1)
    rows = search(run)
    what = f"Choices by PQ in percent; pictures of seed {PICTURES_SEED}, trainings of seed {SEED}."
    write_figures(FIGURES, what, {"rows": rows})
    for row in rows:
        print(
            "*" if row["taken"] else " ", row["round"], row["name"], *(f"{row[key]:.1f}" for key in _SCORES)
        )


if __name__ == "__main__":
    main()
