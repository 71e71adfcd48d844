"""Reports of methods beside ODISE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finished_runs import all_runs, settings, train

from odise_pl.runs.command import report
from odise_pl.runs.conf import CONF
from odise_pl.runs.finished import find_runs
from odise_pl.runs.published import ABLATIONS, SPLITS
from odise_pl.runs.record import AblationSettings
from odise_pl.runs.report import ablation_tables, all_runs_tables

METHODS = next(ablation for ablation in ABLATIONS if ablation.name == "method")


def test_methods_are_compared_with_odise_and_stay_out_of_its_ablations(tmp_path: Path) -> None:
    """Also beside a run of an earlier version, which names no method."""
    other = AblationSettings("label", "none", False, "none", "both", "clip", "fc_clip")
    for seed in range(2):
        train(tmp_path / "odise", seed, 60, settings(model="label"))
        train(tmp_path / "other", seed, 50, other)
    runs = find_runs(tmp_path)
    rows, (_, differences) = ablation_tables(METHODS, runs)
    shown = {row.name: row for row in rows if row.scores}
    assert set(shown) == {"odise_label", "fc_clip"}
    assert shown["fc_clip"].reference == "odise_label"
    assert shown["fc_clip"].paper == METHODS.rows["fc_clip"]
    assert "-10.0" in differences.markdown()
    for ablation in ABLATIONS:
        if ablation is not METHODS:
            assert not any("fc_clip" in row.name for row in ablation_tables(ablation, runs)[0])


def test_all_runs_are_compared_with_odise(tmp_path: Path) -> None:
    other = AblationSettings("caption", "none", False, "none", "both", "clip", "fc_clip")
    train(tmp_path / "odise", 0, 60, settings(model="label"))
    train(tmp_path / "other", 0, 50, other)
    _, (_, differences) = all_runs_tables(find_runs(tmp_path))
    ((name, reference, *_),) = differences.rows
    assert (name, reference) == ("caption", "label")


def test_what_a_preset_sets_is_not_in_names(tmp_path: Path) -> None:
    """What it leaves at its default is, if ODISE was trained otherwise."""
    other = AblationSettings("label", "none", False, "none", "both", "clip", "fc_clip")
    usual, own = ({"head": {"queries": queries}} for queries in (100, 250))
    train(tmp_path / "odise", 0, 60, settings(model="label"), model=usual, optimizer={"weight_decay": 0.1})
    train(tmp_path / "other", 0, 50, other, model=own, optimizer={"weight_decay": 0.05})
    (name,) = [row["all runs"] for row in all_runs(tmp_path) if row["method"] == "fc_clip"]
    assert "queries" not in name
    assert "optimizer.weight_decay=0.05" in name


def test_published_numbers_stand_beside_the_preset(tmp_path: Path) -> None:
    """Not beside other supervision, nor the method with a piece of another one."""
    own = AblationSettings("label", "none", False, "none", "both", "clip", "fc_clip")
    changes: dict[str, Any] = {"plain": {}, "coat": {"classifier": {"objectness_share": 0.5}}}
    for name, changed in changes.items():
        train(tmp_path / name, 0, 50, own, model={"supervision": "label"}, **changed)
    captions = replace(own, model="caption")
    train(tmp_path / "captions", 0, 40, captions, model={"supervision": "caption"})

    def papers(*folders: str) -> list[float | None]:
        rows, _ = ablation_tables(METHODS, find_runs(*(tmp_path / name for name in folders)))
        return [row.paper and row.paper.ade20k for row in rows if row.scores]

    assert papers("plain") == [26.8]
    assert sorted(papers(*changes, "captions"), key=str) == [26.8, None, None]
    assert papers("captions") == [None]


def test_splits_of_a_method_are_named_and_have_no_published_numbers(tmp_path: Path) -> None:
    """What the preset sets, and how many images a step evaluates, are not in the names."""
    own = AblationSettings("label", "none", False, "none", "both", "other", "fc_clip")
    for threshold, added in {0.3: {"eval_batch_size": 8}, 0.5: {"unseen": ["cup"]}}.items():
        changed: dict[str, Any] = {"data": {"train": "t", "val": "v", **added}}
        changed["backbone"] = {"channels": None, "window": "whole"}
        changed["classifier"] = {"crop_threshold": threshold}
        train(tmp_path / str(threshold), 0, 50, own, **changed)
    train(tmp_path / "odise", 0, 60, settings(model="label"))
    rows, _ = ablation_tables(METHODS, find_runs(tmp_path))
    papers = {row.name: row.paper and row.paper.ade20k for row in rows if row.scores}
    split = "fc_clip, fusion.crop_threshold=0.5, data.unseen=['cup']"
    assert papers == {"odise_label": 22.6, "fc_clip": 26.8, split: None}


def test_report_says_of_which_protocol_published_numbers_are(tmp_path: Path) -> None:
    train(tmp_path / "odise", 0, 60, settings(model="label"))
    report([tmp_path])
    text = (tmp_path / "report" / "ablations.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## method\n")
    for words in ("47.4", "PASCAL-5i", "24.3", "ZegFormer 86.4 / 63.6 / 73.3"):
        assert words in section.partition("## ")[0]


@pytest.mark.parametrize("split", SPLITS)
def test_published_harmonic_means_follow_from_both_means(split: str) -> None:
    """Up to rounding."""
    assert (CONF / "split" / f"{split}.yaml").is_file()
    for s, u, harmonic in SPLITS[split].values():
        assert harmonic == pytest.approx(2 * s * u / (s + u), abs=0.15)
