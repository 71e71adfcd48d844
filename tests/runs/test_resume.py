from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from odise_pl.checkpoints.files import last_checkpoint, saved_checkpoints
from odise_pl.errors import SettingError
from odise_pl.runs.record import AblationSettings, mark_finished, resolve_settings, write_settings
from odise_pl.runs.resume import checkpoint_path, resolve_resume

WORDS = AblationSettings("label", "0", False, "implicit", "both")


def config(folder: Path, **changes: object) -> DictConfig:
    base = {
        "run": "mine",
        "run_dir": str(folder),
        "ckpt": None,
        "init_from": None,
        "global_batch": 4,
        "optimizer": {"lr": 0.1},
        "data": {"train": "here", "num_workers": 4},
        "trainer": {"devices": 1, "max_steps": 10},
    }
    made = OmegaConf.create(OmegaConf.merge(base, changes))
    assert isinstance(made, DictConfig)
    return made


def resume(folder: Path, **changes: object) -> Path | None:
    made = config(folder, **changes)
    return resolve_resume(made, resolve_settings(made))


def saved(folder: Path, *steps: int) -> Path:
    """Consecutive checkpoints of these steps, and the link to the last."""
    place = folder / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    for time, step in enumerate(steps):
        (place / f"step_{step}.ckpt").touch()
        os.utime(place / f"step_{step}.ckpt", (time, time))
    (place / "last.ckpt").unlink(missing_ok=True)
    (place / "last.ckpt").symlink_to(f"step_{steps[-1]}.ckpt")
    return place


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The folder of a run interrupted after step 10."""
    write_settings(tmp_path, resolve_settings(config(tmp_path)))
    saved(tmp_path, 5, 10)
    return tmp_path


def test_new_run_starts_and_equal_settings_resume(interrupted: Path) -> None:
    assert resume(interrupted / "new") is None
    last = interrupted / "checkpoints" / "step_10.ckpt"
    assert resume(interrupted) == last
    assert resume(interrupted, trainer={"devices": 8}, data={"num_workers": 0}) == last


def test_other_settings_are_refused_and_named(interrupted: Path) -> None:
    other = {"optimizer": {"lr": 0.2}, "data": {"words": 8}}
    with pytest.raises(SettingError) as error:
        resume(interrupted, **other)
    for part in ("optimizer.lr 0.1 -> 0.2", "data.words absent -> 8", "run=NAME", "init_from="):
        assert part in str(error.value)
    with pytest.raises(SettingError, match=r"data\.words absent -> 8.*ckpt=last"):
        resume(interrupted, data={"words": 8})


def test_resume_keeps_optimizer_settings(interrupted: Path, tmp_path: Path) -> None:
    assert resume(interrupted, ckpt="last", data={"words": 8}) == interrupted / "checkpoints" / "step_10.ckpt"
    named = interrupted / "checkpoints" / "step_5.ckpt"
    assert resume(tmp_path / "another", ckpt=str(named), data={"words": 8}) == named
    for changed in ({"optimizer": {"lr": 0.2}}, {"global_batch": 8}):
        with pytest.raises(SettingError, match=r"init_from="):
            resume(tmp_path / "another", ckpt=str(named), **changed)


def test_missing_checkpoints_and_those_of_other_runs_are_refused(interrupted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    with pytest.raises(SettingError, match=r"other\.ckpt does not exist"):
        resume(interrupted, ckpt=str(other))
    other.touch()
    with pytest.raises(SettingError, match="already has checkpoints"):
        resume(interrupted, ckpt=str(other))
    with pytest.raises(SettingError, match="give only one"):
        resume(tmp_path / "new", ckpt=str(other), init_from=str(other))


def test_finished_run_with_other_settings_is_refused(interrupted: Path) -> None:
    mark_finished(interrupted, WORDS, {})
    longer = {"trainer": {"max_steps": 20}}
    with pytest.raises(SettingError, match="finished run"):
        resume(interrupted, **longer)
    assert resume(interrupted, ckpt="last", **longer) is not None


def test_folder_of_a_run_names_its_newest_checkpoint(interrupted: Path) -> None:
    last = interrupted / "checkpoints" / "step_10.ckpt"
    assert checkpoint_path(str(interrupted), "elsewhere") == last
    assert checkpoint_path("last", interrupted) == last
    assert checkpoint_path("nothing.ckpt", interrupted) == Path("nothing.ckpt")


def test_last_checkpoint_is_found_without_link(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    place = saved(tmp_path, 3, 2)  # the newest counts, not the highest step
    assert last_checkpoint(tmp_path) == place / "step_2.ckpt"
    (place / "last.ckpt").unlink()
    assert last_checkpoint(tmp_path) == place / "step_2.ckpt"
    (place / "last.ckpt").symlink_to("gone.ckpt")
    assert last_checkpoint(tmp_path) == place / "step_2.ckpt"
    assert [path.name for path in saved_checkpoints(place)] == ["step_2.ckpt", "step_3.ckpt"]
