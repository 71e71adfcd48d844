from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from odise_pl.data.manifest import FILE_NAME, Captioning, check_shards
from odise_pl.errors import SettingError
from odise_pl.runs.limits import bad_numbers
from odise_pl.runs.settings import (
    adopt,
    check_training,
    check_weights,
    clear_errors,
    record,
    refuse_changes,
    user_error,
)


def config(tmp_path: Path, **changes: object) -> OmegaConf:
    base = {
        "run": "mine",
        "run_dir": str(tmp_path / "run"),
        "ckpt": None,
        "init_from": None,
        "model": {"supervision": "label", "backbone": "${backbone}"},
        "fusion": {"seen_share": 0.3},
        "backbone": {"weights": "random", "timesteps": [0], "source": "hf download it"},
        "clip": {"weights": "random", "source": "hf download that"},
        "captioner": {"learnable_time": True},
        "optimizer": {"lr": 1e-4, "milestones": [0.9]},
        "global_batch": 4,
        "grounding": None,
        "data": {"train": "${oc.env:SCENES}", "val": None, "eval_short_side": 64, "eval_long_side": 128},
    }
    return OmegaConf.merge(base, changes)


@pytest.fixture(autouse=True)
def _data(scene_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENES", str(scene_shards))


def test_nothing_missing_passes(tmp_path: Path) -> None:
    check_training(config(tmp_path))


def test_data_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.train names no shard set: add data\.train=DIR"):
        check_training(config(tmp_path, data={"train": None}))


def test_all_that_is_missing_is_listed_at_once(tmp_path: Path) -> None:
    wanting = config(
        tmp_path,
        backbone={"weights": f"{tmp_path}/sd.ckpt"},
        clip={"weights": f"{tmp_path}/clip.safetensors"},
        data={"train": f"{tmp_path}/shards", "val": {"one": f"{tmp_path}/one", "two": f"{tmp_path}/two"}},
        ckpt=f"{tmp_path}/old.ckpt",
        init_from=f"{tmp_path}/official.pth",
    )
    with pytest.raises(SettingError) as error:
        check_training(wanting)
    text = str(error.value)
    for word in (
        "sd.ckpt",
        "hf download it",
        "hf download that",
        "data.train",
        "one",
        "two",
        "old.ckpt",
        "official.pth",
    ):
        assert word in text


@pytest.mark.parametrize("flag", ["learnable_time", "on_the_fly"])
def test_a_word_is_not_taken_for_true(tmp_path: Path, flag: str) -> None:
    with pytest.raises(SettingError, match=f"captioner.{flag}=maybe: choose true or false"):
        check_training(config(tmp_path, captioner={flag: "maybe"}))


@pytest.mark.parametrize("steps", [[1000], [-1], [], [0, 0], [0.5], [True], 5, None, "learned"], ids=str)
def test_steps_that_cannot_be_are_refused_before_anything_loads(tmp_path: Path, steps: object) -> None:
    bad = config(tmp_path)
    bad.backbone.timesteps = steps
    with pytest.raises(
        SettingError, match=r"backbone\.timesteps=.*0\.\.999 as a list, e\.g\. \[0\], or learnable"
    ):
        check_training(bad)
    bad.backbone.timesteps = "learnable"
    check_training(bad)


def test_a_missing_captioning_model_is_named(tmp_path: Path) -> None:
    wanting = config(
        tmp_path,
        paths={"weights": "weights"},
        captioner={
            "on_the_fly": True,
            "weights": "weights/no-such-blip",
            "source": "hf download a captioner",
        },
    )
    with pytest.raises(SettingError, match=r"captioner\.weights=weights/no-such-blip .*download a captioner"):
        check_training(wanting)


def described(folder: Path, model: str | None) -> str:
    """A shard set that is captioned by this model."""
    manifest = check_shards(os.environ["SCENES"]).manifest
    folder.mkdir()
    (folder / manifest.shards[0].name).touch()
    captioning = None if model is None else Captioning(model, "0" * 64, 20, "1" * 64)
    (folder / FILE_NAME).write_bytes(replace(manifest, captioning=captioning).to_bytes())
    return str(folder)


def test_precomputed_captions_must_be_there_and_then_no_model(tmp_path: Path) -> None:
    captioner = {"on_the_fly": False, "weights": "weights/no-such-blip", "source": "hf download a captioner"}
    bare, by_one = described(tmp_path / "bare", None), described(tmp_path / "one", "one")
    by_other = described(tmp_path / "other", "other")
    check_training(config(tmp_path, captioner=captioner, data={"train": by_one, "val": by_one}))
    with pytest.raises(SettingError) as error:
        check_training(config(tmp_path, captioner=captioner, data={"train": by_one, "val": {"a": bare}}))
    assert f"data.val: {bare} holds no generated captions" in str(error.value)
    assert f"prepare captions --shards {bare} --out {bare}_captioned" in str(error.value)
    assert "captioner.on_the_fly=true" in str(error.value)
    assert "data.train" not in str(error.value)
    with pytest.raises(SettingError, match=r"not all by one model.*by one and .*by other"):
        check_training(config(tmp_path, captioner=captioner, data={"train": by_one, "val": by_other}))
    with pytest.raises(SettingError, match=r"data\.val: .*bare holds no generated captions"):
        check_weights(config(tmp_path, captioner=captioner, data={"val": bare}))


def test_names_of_a_hub_are_not_taken_for_files(tmp_path: Path) -> None:
    check_training(
        config(
            tmp_path, backbone={"weights": "someone/stable-diffusion"}, clip={"weights": "ViT-L-14:openai"}
        )
    )


def test_a_checkpoint_brings_its_network_and_the_command_line_wins(tmp_path: Path) -> None:
    trained = config(
        tmp_path, backbone={"timesteps": [100]}, data={"eval_short_side": 32}, fusion={"seen_share": 0.1}
    )
    now = config(tmp_path, backbone={"weights": "elsewhere"}, data={"eval_long_side": 999})
    merged = adopt(
        now, record(trained), ["backbone.weights=elsewhere", "data=coco", "data.eval_long_side=999"]
    )
    assert list(merged.backbone.timesteps) == [100]
    assert merged.model.backbone.weights == "elsewhere"
    assert merged.fusion.seen_share == 0.1
    assert (merged.data.eval_short_side, merged.data.eval_long_side) == (32, 999)
    assert list(adopt(now, record(trained), ["backbone=tiny"]).backbone.timesteps) == [0]


def test_adopt_understands_train_window(tmp_path: Path) -> None:
    kept = record(config(tmp_path))
    kept["config"]["backbone"]["train_window"] = kept["config"]["backbone"].pop("window", 256)
    adopted = adopt(config(tmp_path), kept, []).backbone
    assert adopted.window == 256
    assert "train_window" not in adopted


def test_a_window_is_a_multiple_of_32(tmp_path: Path) -> None:
    problems = [bad_numbers(config(tmp_path, backbone={"window": side})) for side in (None, 512, 100, "abc")]
    assert problems[:2] == [[], []]
    assert all("backbone.window" in found[0] for found in problems[2:])


def test_user_errors_end_in_one_message() -> None:
    def library() -> None:
        try:
            raise SettingError("there is no such thing")
        except SettingError as cause:
            raise RuntimeError("wrapped") from cause

    with pytest.raises(SystemExit, match="error: there is no such thing"), clear_errors():
        library()


def test_errors_in_a_circle_come_to_an_end() -> None:
    one, other = OSError("disk full"), ValueError("not logged")
    one.__context__, other.__context__ = other, one
    assert user_error(other) is None


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), clear_errors():
        _ = 1 / 0


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, odise_pl.runs.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_and_vocabularies_are_checked_at_once(tmp_path: Path) -> None:
    bad = {
        "data": {"batch_size": 0, "eval_batch_size": "two", "limit_samples": True, "num_workers": -1},
        "validate_every": 0,
        "optimizer": {"lr": "fast"},
        "trainer": {"max_steps": -1},
        "vocabulary": {"eval": "nofile.txt", "train": None},
        "model": {"head": {"queries": 0, "channels": 64, "heads": "x"}},
    }
    with pytest.raises(SettingError) as error:
        check_training(config(tmp_path, **bad))
    names = ("data.batch_size=0", "data.eval_batch_size=two", "validate_every=0", "data.limit_samples=True")
    more = ("data.num_workers=-1", "optimizer.lr=fast", "trainer.max_steps=-1", "model.head.queries=0")
    for word in (*names, *more, "model.head.heads=x", "vocabulary.eval", "nofile.txt"):
        assert word in str(error.value)


@pytest.mark.parametrize("scales", [[2.0], [2.0, 1.0], "wide", [0.0, 1.0], ["a", "b"]], ids=str)
def test_sizes_have_to_fit_each_other(tmp_path: Path, scales: object) -> None:
    bad = {"data": {"scale_range": scales}, "model": {"head": {"channels": 100, "heads": 8}}}
    with pytest.raises(SettingError, match=r"data\.scale_range=(?s:.*)model\.head\.channels=100") as error:
        check_training(config(tmp_path, **bad, backbone={"channels": 100}))
    assert "backbone.channels=100" in str(error.value)


@pytest.mark.parametrize("experiment", [None, "laptop", "overfit", "[laptop,ablation_timestep]"])
def test_our_own_numbers_are_within_their_limits(experiment: str | None) -> None:
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        for model in ("odise_label", "odise_caption"):
            overrides = [f"model={model}", *([f"experiment={experiment}"] if experiment else [])]
            assert bad_numbers(compose("train", ["run=mine", "run_dir=runs/mine", *overrides])) == []


def test_options_that_the_trainer_refuses_end_in_one_message() -> None:
    from lightning import Trainer

    with pytest.raises(SystemExit, match=r"error: .*devices"), clear_errors():
        Trainer(accelerator="cpu", devices=0)


def test_another_runs_checkpoint_does_not_replace_this_runs(tmp_path: Path) -> None:
    last, other = tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "other.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    other.touch()
    with pytest.raises(SettingError, match="checkpoints of its own"):
        check_training(config(tmp_path, ckpt=str(other)))
    with pytest.raises(SettingError, match="give one of them"):
        check_training(config(tmp_path, run_dir=str(tmp_path), ckpt=str(last), init_from=str(other)))


def test_a_resumed_run_keeps_its_optimiser(tmp_path: Path) -> None:
    before = record(config(tmp_path))
    refuse_changes(config(tmp_path, ckpt="last"), before)
    refuse_changes(config(tmp_path, ckpt="last"), None)
    with pytest.raises(SettingError, match=r"optimizer\.lr 0\.0001 -> 0\.1.*init_from="):
        refuse_changes(config(tmp_path, ckpt="last", optimizer={"lr": 0.1}), before)
    with pytest.raises(SettingError, match="global_batch 4 -> 8"):
        refuse_changes(config(tmp_path, ckpt="last", global_batch=8), before)


def test_sharding_in_a_precision_it_does_not_know_is_refused(tmp_path: Path) -> None:
    strategy = {"_target_": "odise_pl.distributed.sharding.ShardedStrategy"}
    check_training(config(tmp_path, trainer={"strategy": strategy, "precision": "bf16-mixed"}))
    with pytest.raises(SettingError, match=r"precision=16-mixed: trainer=fsdp computes in bf16"):
        check_training(config(tmp_path, trainer={"strategy": strategy, "precision": "16-mixed"}))
