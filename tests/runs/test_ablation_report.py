from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import all_runs, finish, read, settings, train
from PIL import Image

from odise_pl.runs.command import report
from odise_pl.runs.finished import find_runs
from odise_pl.runs.published import ABLATIONS
from odise_pl.runs.record import AblationSettings, mark_finished
from odise_pl.runs.report import ablation_tables

STEPS = ("0", "100", "200", "500", "0+100+200", "learnable")
TIMESTEPS = next(ablation for ablation in ABLATIONS if ablation.name == "timestep")
BACKBONES = next(ablation for ablation in ABLATIONS if ablation.name == "backbone")
CAPTIONERS = ("empty", "heuristic", "blip", "implicit")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Six steps by four captioners with consecutive PQ, and a second run of the first settings."""
    for i, steps in enumerate(STEPS):
        for j, captioner in enumerate(CAPTIONERS):
            scores = {"coco": {"pq": (4 * i + j) / 100, "map": 0.5, "miou": 0.25}}
            finish(tmp_path / f"{steps}_{captioner}", settings(steps, captioner), scores)
    again = {"coco": {"pq": 0.1, "map": 0.5, "miou": 0.25}, "ade": {"pq": 0.2}}
    finish(tmp_path / "again", settings("0", "empty"), again)
    return tmp_path


def timesteps(folder: Path) -> list[dict[str, str]]:
    """The rows with runs."""
    _, (scores, _) = ablation_tables(TIMESTEPS, find_runs(folder))
    return [row for row in read(scores.csv()) if row["seeds"] != "0"]


def differences(folder: Path) -> list[dict[str, str]]:
    _, (_, found) = ablation_tables(TIMESTEPS, find_runs(folder))
    return read(found.csv())


def test_table_averages_runs_of_equal_settings(runs: Path) -> None:
    rows = all_runs(runs)
    assert len(rows) == 24
    by = {(row["timesteps"], row["captioner"]): row for row in rows}
    assert by["learnable", "implicit"]["coco PQ"] == "23.0"
    mean = by["0", "empty"]  # of 0 and 10: 12.706 standard errors of 5
    assert (mean["coco PQ"], mean["ade PQ"], mean["seeds"]) == ("5.0 ± 63.5", "20.0", "2")
    assert {row["ade PQ"] for row in rows if row is not mean} == {""}


def test_tables_show_published_numbers(runs: Path, tmp_path: Path) -> None:
    report([runs])
    rows, captioners, classifiers = (
        read((runs / "report" / f"{name}.csv").read_text(encoding="utf-8"))
        for name in ("timestep", "captioner", "classifier")
    )
    assert [row["timestep"] for row in rows] == list(STEPS)
    assert [row["paper: COCO PQ"] for row in rows] == ["44.2", "43.2", "42.4", "38.2", "43.7", "44.0"]
    # the implicit captioner's runs only
    assert [row["coco PQ"] for row in rows] == ["3.0", "7.0", "11.0", "15.0", "19.0", "23.0"]
    assert [row["captioner"] for row in captioners] == list(CAPTIONERS)
    assert [row["paper: ADE20K PQ"] for row in captioners] == ["21.8", "22.2", "22.3", "23.3"]
    assert [row["coco PQ"] for row in captioners] == ["5.0 ± 63.5", "1.0", "2.0", "3.0"]
    assert [row["coco PQ"] for row in classifiers] == ["", "", "3.0"]
    text = (runs / "report" / "ablations.md").read_text(encoding="utf-8")
    assert "| 0+100+200 | caption | no | 43.7 | 23.1 | 19.0 | 50.0 | 25.0 | 1 |" in text
    assert "| learnable | caption | yes | 44.0 | 22.8 | 23.0 | 50.0 | 25.0 | 1 |" in text


def test_models_and_learned_time_have_separate_rows(tmp_path: Path) -> None:
    kinds = {("label", False): 0.1, ("caption", False): 0.2, ("caption", True): 0.3}
    for (model, learned), pq in kinds.items():
        of_this = AblationSettings(model, "0", learned, "implicit", "both")
        finish(tmp_path / f"{model}{learned}", of_this, {"coco": {"pq": pq}})
    rows = timesteps(tmp_path)
    found = [(row["timestep"], row["model"], row["time learned"], row["coco PQ"]) for row in rows]
    assert found == [
        ("0", "caption", "no", "20.0"),
        ("0, time learned", "caption", "yes", "30.0"),
        ("0, label", "label", "no", "10.0"),
    ]
    assert [row["paper: COCO PQ"] for row in rows] == ["44.2", "", ""]


def test_unpublished_setting_gets_a_row(tmp_path: Path) -> None:
    finish(tmp_path / "run", settings("50"), {"coco": {"pq": 0.5}})
    (row,) = timesteps(tmp_path)
    assert (row["timestep"], row["paper: COCO PQ"], row["coco PQ"]) == ("50", "", "50.0")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("trainer.max_steps=20", {"trainer": {"max_steps": 20}}),
        ("trainer.limit_val_batches=1", {"trainer": {"max_steps": 10, "limit_val_batches": 1}}),
        ("random", {"backbone": {"weights": "random"}}),
        ("clip.weights=other", {"clip": {"weights": "other"}}),
        ("data.train=u", {"data": {"train": "u", "val": "v"}}),
        ("global_batch=9", {"global_batch": 9}),
        ("optimizer.lr=0.1", {"optimizer": {"lr": 0.1}}),
        ("captioner.vocabulary=other", {"captioner": {"vocabulary": "other"}}),
    ],
)
def test_runs_of_other_settings_are_kept_apart(tmp_path: Path, name: str, changed: dict[str, Any]) -> None:
    usual = {
        "backbone": {"weights": "a"},
        "clip": {"weights": "b"},
        "captioner": {"vocabulary": "c"},
        "global_batch": 8,
        "optimizer": {"lr": 0.01},
    }
    for seed in (0, 1):
        train(tmp_path / "one", seed, 30 + seed, **usual)
        train(tmp_path / "other", seed, 40 + seed, **usual | changed)
    rows = timesteps(tmp_path)
    assert {(row["timestep"], row["val PQ"][:4]) for row in rows} == {
        ("0", "30.5"),
        (f"0, {name}", "40.5"),
    }
    assert {row["timestep"]: row["paper: COCO PQ"] for row in rows} == {"0": "44.2", f"0, {name}": ""}


def test_sets_of_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    train(tmp_path / "a", 0, 30)
    train(tmp_path / "b", 0, 40, data={"train": "t", "val": "w"})
    (row,) = all_runs(tmp_path)
    assert (row["val (v) PQ"], row["val (w) PQ"], row["seeds"]) == ("30.0", "40.0", "1")


def test_repetitions_of_a_seed_count_once(tmp_path: Path) -> None:
    train(tmp_path / "a", 0, 30)
    train(tmp_path / "b", 0, 32)
    (row,) = all_runs(tmp_path)
    assert (row["val PQ"], row["seeds"]) == ("31.0", "1")


def test_differences_are_paired_over_common_seeds(tmp_path: Path) -> None:
    """Of three common seeds: 1, 2 and 3 at step 100, 1, -1 and 3 at step 200, one seed at step 500."""
    scores = {
        "0": {0: 10, 1: 50, 2: 20, 3: 90},
        "100": {0: 11, 1: 52, 2: 23, 7: 0},
        "200": {0: 11, 1: 49, 2: 23},
        "500": {3: 80},
        "0+100+200": {8: 10, 9: 11},
    }
    for steps, by in scores.items():
        for seed, pq in by.items():
            train(tmp_path / steps, seed, pq, settings(steps))
    rows = {row["timestep"]: row for row in differences(tmp_path)}
    assert {name: (row["minus"], row["val PQ"], row["val PQ decided"]) for name, row in rows.items()} == {
        "100": ("0", "+2.0 ± 2.5", "not decided"),  # t = 4.303, deviation 1, root of 3
        "200": ("0", "+1.0 ± 5.0", "not decided"),
        "500": ("0", "-10.0", ""),
    }  # and no row without a common seed


def test_decided_difference_and_reversed_order(tmp_path: Path) -> None:
    """The seeds differ by more than the steps, but all of them alike."""
    for steps, pq in {"0": 30, "100": 40, "500": 20}.items():
        for seed in range(3):
            noise = {"toy_open": {"pq": (pq + 5 * seed + (seed == 1)) / 100}}
            train(tmp_path / steps, seed, 0, settings(steps))
            mark_finished(tmp_path / steps / f"seed_{seed}", settings(steps), noise)
    rows = differences(tmp_path)
    assert [(row["timestep"], row["toy_open PQ decided"]) for row in rows] == [
        ("100", "decided"),
        ("500", "decided"),
    ]
    _, (scores, _) = ablation_tables(TIMESTEPS, find_runs(tmp_path))
    (note,) = scores.notes
    assert "paper: 0 > 100 > 500; on toy_open: 100 > 0 > 500" in note
    assert "1 of 3 pairs differ, 1 decided" in note


def test_rows_are_compared_with_the_reference_of_the_same_kind(tmp_path: Path) -> None:
    for model, pq in {"label": 50, "caption": 30}.items():
        for steps, more in {"0": 0, "100": 4}.items():
            train(tmp_path / f"{model}{steps}", 0, pq + more, settings(steps, model=model))
    rows = differences(tmp_path)
    assert {(row["timestep"], row["minus"], row["val PQ"]) for row in rows} == {
        ("0, label", "0", "+20.0"),
        ("100", "0", "+4.0"),
        ("100, label", "0, label", "+4.0"),
    }


def test_backbones_stand_beside_the_paper(tmp_path: Path) -> None:
    """Names follow from weights; other timesteps, and settings that belong to a backbone, make no rows."""
    files = {
        "sd": "weights/sd-v1-3.ckpt",
        "deit": "timm/deit3_huge_patch14_224.fb_in22k_ft_in1k",
        "swin": "/shared/swin_large_patch4_window12_384.ms_in22k.safetensors",
        "own": "runs/mine.safetensors",
    }
    for seed in (0, 1):
        for pq, (name, weights) in enumerate(files.items(), 20):
            backbone = {"weights": weights, "input_size": 448 if name == "deit" else 512, "pyramid": "depths"}
            folder, words = tmp_path / "runs" / name, settings(*([] if name == "sd" else ["none"] * 2))
            train(folder, seed, pq + seed, words, backbone=backbone)
            mark_finished(folder / f"seed_{seed}", words, {"ade150": {"pq": (pq + seed) / 100}})
            if name == "deit":
                train(
                    tmp_path / "runs" / "simple", seed, 60, words, backbone=backbone | {"pyramid": "simple"}
                )
    train(tmp_path / "runs" / "step", 0, 50, settings("100"), backbone={"weights": files["sd"]})
    _, (scores, differences) = ablation_tables(BACKBONES, find_runs(tmp_path / "runs"))
    rows = {row["backbone"]: row for row in read(scores.csv())}
    assert {name: (row["paper: COCO PQ"], row["paper: ADE20K PQ"]) for name, row in rows.items()} == {
        **{name: (str(known.coco or ""), str(known.ade20k)) for name, known in BACKBONES.rows.items()},
        "deit3_h, backbone.pyramid=simple": ("", ""),
        "mine": ("", ""),
    }
    assert {name: row["ade150 PQ"] for name, row in rows.items() if row["ade150 PQ"]} == {
        "stable_diffusion_v1": "20.5 ± 6.4",
        "deit3_h": "21.5 ± 6.4",
        "swin_l": "22.5 ± 6.4",
        "mine": "23.5 ± 6.4",
    }
    minus = [(row["backbone"], row["minus"], row["ade150 PQ"]) for row in read(differences.csv())]
    assert minus[0] == ("deit3_h", "stable_diffusion_v1", "+1.0 ± 0.0")
    assert "paper: stable_diffusion_v1 > deit3_h > swin_l; on ade150: swin_l" in scores.notes[0]
    assert {row["timestep"] for row in timesteps(tmp_path / "runs")} == {"0", "100"}
    assert "caption, swin_l" in {
        row["all runs"].partition(", backbone.")[0] for row in all_runs(tmp_path / "runs")
    }
    report([tmp_path / "runs"])  # plots a row without the paper's COCO


def test_changed_backbones_are_named_without_runs_of_the_published_ones(tmp_path: Path) -> None:
    """What differs from conf/backbone is named, except what all share with the reference."""
    sd = {"weights": "sd-v1-3.ckpt", "channels": 256}
    mvit = {"weights": "timm/mvitv2_huge_cls.fb_inw21k", "channels": 256, "pyramid": "depths"}
    dino = {"weights": "vit_large_patch16_dinov3.lvd1689m.safetensors", "input_size": 256}
    train(tmp_path / "sd", 0, 30, backbone=sd)
    train(tmp_path / "mvit", 0, 30, backbone=mvit | {"final_norm": False, "options": {"depth": 4}})
    train(tmp_path / "two", 0, 30, backbone={"first": sd, "second": dino})
    rows, _ = ablation_tables(BACKBONES, find_runs(tmp_path))
    assert {row.name for row in rows if row.scores} == {
        "stable_diffusion_v1",
        "mvit_h, backbone.final_norm=False, backbone.options.depth=4",
        "stable_diffusion_v1+dinov3_l, backbone.first.channels=256, backbone.second.input_size=256",
    }


def test_published_numbers_stand_beside_the_published_backbone(tmp_path: Path) -> None:
    """Among several backbones with timesteps, the paper's is the reference, whatever their names."""
    for weights in ("sd-v1-3.ckpt", "cin256-v2.ckpt"):
        for seed in (0, 1):
            for step, pq in (("0", 30), ("100", 25)):
                folder, backbone = tmp_path / weights / step, {"weights": f"weights/{weights}"}
                train(folder, seed, pq - 9 * (weights[0] == "c"), settings(step), backbone=backbone)
    paper = "paper: ADE20K PQ"
    rows = {row["timestep"]: row[paper] for row in timesteps(tmp_path) if row[paper]}
    minus = {row["timestep"]: row["minus"] for row in differences(tmp_path)}
    assert rows == {"0": "23.3", "100": "22.8"}
    assert minus == {"100": "0", "0, ldm_in1k": "0", "100, ldm_in1k": "0, ldm_in1k"}


def test_scores_of_every_seed_are_written(tmp_path: Path) -> None:
    train(tmp_path, 0, 30)
    train(tmp_path, 4, 32)
    report([tmp_path])
    tables = json.loads((tmp_path / "report" / "ablations.json").read_text())["tables"]
    row = next(row for row in tables["timestep"]["rows"] if row["name"] == "0")
    assert (row["seeds"], row["paper"]) == ([0, 4], TIMESTEPS.rows["0"]._asdict())
    assert row["runs"]["val.pq"] == pytest.approx([30, 32])
    assert row["val.pq"] == pytest.approx([31, 2**0.5], abs=1e-4)


def test_folders_are_reported_together(tmp_path: Path) -> None:
    train(tmp_path / "a", 0, 30)
    train(tmp_path / "b", 1, 40)
    (row,) = all_runs(tmp_path / "a", tmp_path / "b")
    assert row["seeds"] == "2"


def test_plot_shows_the_runs(runs: Path, tmp_path: Path) -> None:
    report([runs], tmp_path / "with")
    finish(tmp_path / "empty" / "run", settings("0", "blip", "diffusion"), {"coco": {"pq": 1.0}})
    report([tmp_path / "empty"], tmp_path / "without")
    one, other = (
        np.asarray(Image.open(tmp_path / name / "ablations.png").convert("L")) for name in ("with", "without")
    )
    assert (one < 255).sum() > (other < 255).sum() > 0
