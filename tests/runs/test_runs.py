from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from odise_pl.errors import SettingError
from odise_pl.runs.record import (
    CLAIM,
    RunError,
    RunSettings,
    digest_of,
    evaluation_folder,
    find_evaluation,
    find_runs,
    in_sweep,
    is_finished,
    mark_finished,
    read_run,
    settings_of,
)

SETTINGS = RunSettings("caption", "0+100", False, "implicit", "both")


def config(**changes: object) -> DictConfig:
    base = {
        "run_dir": "somewhere",
        "ckpt": None,
        "global_batch": 4,
        "model": {"supervision": "caption"},
        "backbone": {"timesteps": [0, 100]},
        "captioner": {"_target_": "odise_pl.models.build.implicit_captioner", "learnable_time": False},
        "classifier": {"mode": "both"},
        "data": {"train": "here", "num_workers": 4},
        "trainer": {"devices": 1, "max_steps": 10},
    }
    return OmegaConf.create(OmegaConf.merge(base, changes))


def test_settings_in_words() -> None:
    assert settings_of(config()) == SETTINGS
    learned = settings_of(config(backbone={"timesteps": "learnable"}))
    assert (learned.timesteps, learned.learnable_time) == ("learnable", True)


def test_the_digest_changes_with_what_is_computed_only() -> None:
    same = [
        {"run_dir": "elsewhere"},
        {"ckpt": "last"},
        {"data": {"num_workers": 0}},
        {"trainer": {"devices": 8}},
    ]
    other = [{"global_batch": 8}, {"data": {"train": "there"}}, {"trainer": {"max_steps": 20}}]
    assert {digest_of(config(**change)) for change in same} == {digest_of(config())}
    assert len({digest_of(config()), *(digest_of(config(**change)) for change in other)}) == 4
    assert digest_of(config(), "a.ckpt") != digest_of(config(), "b.ckpt")


def test_what_is_marked_is_found(tmp_path: Path) -> None:
    for name in ("b", "a"):
        mark_finished(
            tmp_path / name, SETTINGS, {"val": {"pq": 0.25, "map": float("nan")}}, f"digest of {name}"
        )
    runs = find_runs(tmp_path)
    assert [run.folder.name for run in runs] == ["a", "b"]
    assert runs[0].settings == SETTINGS
    assert runs[0].scores == {"val": {"pq": 0.25}}
    assert is_finished(tmp_path / "a", "digest of a")
    assert not is_finished(tmp_path / "c", "digest of a")
    with pytest.raises(SettingError, match="a finished run with other settings"):
        is_finished(tmp_path / "a", "another digest")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {"model": "label"}}'])
def test_a_damaged_marker_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "finished.json").write_text(text)
    with pytest.raises(RunError, match=r"finished\.json cannot be read"):
        read_run(tmp_path)


def test_a_folder_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no finished run"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("val", "name"),
    [
        ("data/shards/my_val", "my_val-both-step_5"),
        ("https://host/my_val/dataset.json", "my_val-both-step_5"),
        ("pipe:aws s3 cp s3://bucket/my_val/dataset.json -", "my_val-both-step_5"),
        ({"coco": "a", "ade20k": "b"}, "coco+ade20k-both-step_5"),
    ],
)
def test_evaluations_lie_side_by_side(tmp_path: Path, val: object, name: str) -> None:
    one = config(run_dir=str(tmp_path), data={"val": val})
    folder = evaluation_folder(one, 5, "one")
    assert folder == tmp_path / "evaluation" / name
    assert evaluation_folder(one, None, "one").name == name.removesuffix("-step_5")
    assert find_evaluation(one, "one") is None
    mark_finished(folder, SETTINGS, {}, "one")
    assert evaluation_folder(one, 5, "one") == find_evaluation(one, "one") == folder
    another = evaluation_folder(one, 5, "another")
    assert another.name == f"{name}-2"
    mark_finished(another, SETTINGS, {}, "another")
    assert evaluation_folder(one, 5, "a third").name == f"{name}-3"
    assert evaluation_folder(one, 5, "another") == another
    third = evaluation_folder(one, 5, "a third")
    claim = third / CLAIM
    claim.parent.mkdir(parents=True)
    claim.write_text("a third")
    assert evaluation_folder(one, 5, "a fourth").name == f"{name}-4", "the third was interrupted there"
    assert evaluation_folder(one, 5, "a third") == third


def test_of_a_network_that_is_measured_again_the_newest_result_counts(tmp_path: Path) -> None:
    places = [tmp_path, tmp_path / "evaluation" / "a", tmp_path / "evaluation" / "a-2", tmp_path / "other"]
    for pq, folder in enumerate(places):
        mark_finished(folder, SETTINGS, {"val": {"pq": float(pq)}}, "d")
        os.utime(folder / "finished.json", (pq, pq))
    mark_finished(places[1].parent / "b", SETTINGS, {"ade20k": {"pq": 7.0}}, "d")
    first, other = find_runs(tmp_path)
    assert (first.folder, other.folder) == (tmp_path, places[3])
    assert first.scores == {"val": {"pq": 2.0}, "ade20k": {"pq": 7.0}}


def test_outside_of_hydra_there_is_no_sweep() -> None:
    assert not in_sweep()
