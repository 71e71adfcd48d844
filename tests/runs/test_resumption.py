"""The same command again: goes on, is done, or is refused."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from odise_pl.checkpoints.files import as_option, last_checkpoint, saved_checkpoints
from odise_pl.errors import SettingError
from odise_pl.runs.record import RunSettings, digest_of, mark_finished
from odise_pl.runs.resume import goes_on, keep


def config(folder: Path, **changes: object) -> DictConfig:
    base = {
        "run": "mine",
        "run_dir": str(folder),
        "ckpt": None,
        "global_batch": 4,
        "optimizer": {"lr": 0.1},
        "data": {"train": "here", "num_workers": 4},
        "trainer": {"devices": 1, "max_steps": 10},
    }
    made = OmegaConf.create(OmegaConf.merge(base, changes))
    assert isinstance(made, DictConfig)
    return made


def saved(folder: Path, *steps: int) -> Path:
    """Checkpoints of these steps, one after the other, and the link to the last."""
    place = folder / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    for time, step in enumerate(steps):
        (place / f"step_{step}.ckpt").touch()
        os.utime(place / f"step_{step}.ckpt", (time, time))
    (place / "last.ckpt").unlink(missing_ok=True)
    (place / "last.ckpt").symlink_to(f"step_{steps[-1]}.ckpt")
    return place


def test_a_new_run_starts(tmp_path: Path) -> None:
    one = config(tmp_path)
    assert goes_on(one)
    assert one.ckpt is None


def test_the_same_command_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(config(tmp_path))
    saved(tmp_path, 5, 10)
    with caplog.at_level(logging.INFO):
        for same in (config(tmp_path), config(tmp_path, trainer={"devices": 8}, data={"num_workers": 0})):
            assert goes_on(same)
            assert same.ckpt == "last"
    assert "goes on from step_10.ckpt" in caplog.text


def test_another_command_in_the_same_place_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    keep(config(tmp_path))
    saved(tmp_path, 5)
    other = {"optimizer": {"lr": 0.2}, "data": {"words": 8}}
    with pytest.raises(SettingError) as error:
        goes_on(config(tmp_path, **other))
    for part in ("optimizer.lr 0.1 -> 0.2", "data.words absent -> 8", "run=NAME", "ckpt=last"):
        assert part in str(error.value)
    meant = config(tmp_path, ckpt="last", **other)
    assert goes_on(meant)
    keep(meant)
    assert goes_on(config(tmp_path, **other))
    with pytest.raises(SettingError, match=r"optimizer\.lr 0\.2 -> 0\.1"):
        goes_on(config(tmp_path))


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    keep(config(tmp_path, backbone={"train_window": 128}))
    saved(tmp_path, 5)
    assert goes_on(config(tmp_path, backbone={"window": 128}))
    with pytest.raises(SettingError, match=r"backbone\.window"):
        goes_on(config(tmp_path, backbone={"window": 64}))


def test_a_configuration_that_was_not_written_does_not_count(tmp_path: Path) -> None:
    keep(config(tmp_path))
    saved(tmp_path, 5)
    (tmp_path / "config_1.yaml").touch()
    assert goes_on(config(tmp_path))
    keep(config(tmp_path, ckpt="last", data={"words": 8}))
    assert not list(tmp_path.glob(".*"))
    assert goes_on(config(tmp_path, data={"words": 8}))


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(config(tmp_path))
    saved(tmp_path, 10)
    settings = RunSettings("label", "0", False, "implicit", "both")
    mark_finished(tmp_path, settings, {}, digest_of(config(tmp_path)))
    with caplog.at_level(logging.INFO):
        assert not goes_on(config(tmp_path))
        assert not goes_on(config(tmp_path, ckpt="last"))
    assert caplog.text.count("is finished: skipped") == 2
    longer = {"trainer": {"max_steps": 20}}
    with pytest.raises(SettingError, match="finished run with other settings"):
        goes_on(config(tmp_path, **longer))
    assert goes_on(config(tmp_path, ckpt="last", **longer))


def test_the_last_checkpoint_is_found_without_its_link(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    place = saved(tmp_path, 3, 2)  # gone on from an earlier one: the newest counts, not the highest number
    assert last_checkpoint(tmp_path) == place / "step_2.ckpt"
    (place / "last.ckpt").unlink()
    assert last_checkpoint(tmp_path) == place / "step_2.ckpt"
    (place / "last.ckpt").symlink_to("gone.ckpt")
    assert last_checkpoint(tmp_path) == place / "step_2.ckpt"
    assert [path.name for path in saved_checkpoints(place)] == ["step_2.ckpt", "step_3.ckpt"]


def test_checkpoints_of_earlier_versions_are_found(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_configurations_are_kept_beside_each_other_and_not_twice(tmp_path: Path) -> None:
    for batch in (4, 4, 8, 8, 4):
        keep(config(tmp_path, global_batch=batch, ckpt="last" if batch == 8 else None))
    kept = {path.name: OmegaConf.load(path).global_batch for path in tmp_path.iterdir()}
    assert kept == {"config.yaml": 4, "config_1.yaml": 8, "config_2.yaml": 4}


def test_a_path_is_shown_as_it_has_to_be_typed() -> None:
    assert as_option(Path("runs/a/step_1.ckpt")) == "ckpt=runs/a/step_1.ckpt"
    assert as_option(Path("runs/seed=1/a.ckpt")) == "\"ckpt='runs/seed=1/a.ckpt'\""


def test_it_loads_no_torch() -> None:
    code = "import sys, odise_pl.runs.resume; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
