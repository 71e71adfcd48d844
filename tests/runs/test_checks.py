from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from odise_pl.checkpoints.description import NetworkSettings
from odise_pl.data.manifest import FILE_NAME, Captioning, open_shard_set
from odise_pl.errors import SettingError, find_user_error, report_user_errors
from odise_pl.runs.checks import check_evaluation, check_network, check_training
from odise_pl.runs.conf import compose_config
from odise_pl.training.run import main


@pytest.fixture
def config(tmp_path: Path, scene_shards: Path) -> object:
    """Composes a complete configuration with overrides."""

    def made(*overrides: str, name: str = "train") -> DictConfig:
        own = ["run=mine", f"run_dir={tmp_path}/run", "experiment=laptop"]
        data = [f"data.train={scene_shards}", f"data.val={scene_shards}"]
        return compose_config(name, [*own, *data, *overrides])

    return made


def problems(config: DictConfig) -> str:
    with pytest.raises(SettingError) as error:
        check_training(config)
    return str(error.value)


def test_complete_configuration_passes(config) -> None:
    check_training(config())
    check_training(config("backbone.timesteps=learnable"))
    check_training(config("backbone.weights=someone/stable-diffusion", "clip.weights=ViT-L-14:openai"))


def test_paths_are_not_mistaken_for_hub_ids(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("weights/dinov3", "./dinov3", "a/b/dinov3", "someone/dinov3.bin"):
        assert f"backbone.weights={path}" in problems(config("backbone=dinov3_l", f"backbone.weights={path}"))


def test_all_missing_files_are_listed(config, tmp_path: Path) -> None:
    places = [f"data.train={tmp_path}/shards", f"data.val={{one: {tmp_path}/one, two: {tmp_path}/two}}"]
    weights = ["backbone=stable_diffusion_v1", "clip=vit_l14_336"]
    text = problems(config(*places, *weights, f"init_from={tmp_path}/official.pth"))
    for word in ("sd-v1-3.ckpt", "weights fetch sd-v1-3", "weights fetch clip", "data.train", "/one", "/two"):
        assert word in text
    assert "official.pth" in text
    assert "data.train" in problems(config("data.train=null"))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"  # of the run, which has the first stage's weights
    checkpoint.parent.mkdir()
    checkpoint.touch()
    check_training(config(f"run_dir={tmp_path}", f"init_from={tmp_path}/official.pth"))


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["captioner.learnable_time=maybe"], "captioner.learnable_time"),
        (["vocabulary.eval=nofile.txt"], "vocabulary.eval"),
        (["vocabulary.train=5"], "vocabulary.train: 5 is no vocabulary"),
        (["+data.unseen=[ball,horse,cow]"], "horse, cow"),
        (["+data.unseen=[ball,box,sky,field]"], "data.unseen"),
        (["split=voc15"], "potted plant"),
        (["backbone.timesteps=[1000]"], "backbone.timesteps"),
        (["backbone=cleandift_sd15"], "odise weights fetch sd-v1-5 --folder"),
        (["backbone=cleandift_sd15"], "odise weights fetch cleandift-sd15 --folder"),
        (["global_batch=0"], "global_batch"),
        (["clip=tiny_conv", "clip.trained=true", "model=odise_caption"], "clip.trained"),
        (["criterion.weights.regions=0.1"], "criterion.weights.regions=0.1"),
        (["prompts=learned", "criterion.weights.regions=0"], "clip.prompt_tokens=16"),
        (["model.supervision=words"], "model=odise_caption"),
        (["model=odise_caption", "model.supervision=mask"], "grounding=null"),
        (["criterion._target_=odise_pl.losses.best_mask.BestMaskCriterion"], "BestMaskCriterion"),
        (["model.head._target_=odise_pl.models.build.DenseSettings"], "PixelCriterion"),
        (["method=lseg_plus", "prompts=learned"], "have no masks"),
        (["method=spnet"], "fusion.word_vectors: weights/fasttext.vec is no file"),
        (["method=spnet", "fusion.word_vectors=x.vec"], "fusion.word_vectors=x.vec: give a list"),
        (
            ["method=groupvit", "backbone.weights=random", "+data.unseen=[ball]"],
            "GroupViT learns from captions",
        ),
        (["model=odise_caption", "data.words=0"], "data.words=0"),
        (["trainer=fsdp", "trainer.precision=16-mixed"], "trainer.precision"),
        (["captioner=blip"], "has no generated captions"),
        (["captioner=blip", "captioner.on_the_fly=true"], "captioner.weights=weights/blip"),
        (["backbone=timm", "captioner=blip"], "captioner=blip: this backbone takes no text"),
        (["captioner=none"], "captioner=none: this backbone is a diffusion model"),
        (["backbone=timm", "backbone.weights=5"], "backbone.weights=5 must be text"),
        (["backbone=timm", "backbone.weights=nope"], "backbone.weights=nope does not exist"),
    ],
)
def test_invalid_settings_are_named(config, overrides: list[str], word: str) -> None:
    assert word in problems(config(*overrides))


@pytest.mark.parametrize(
    ("name", "two"), [("channels", "two"), ("window", "[sd_v1_5,tiny]"), ("window_batch", "[mae_h, tiny]")]
)
def test_settings_that_two_backbones_share_are_named(
    name: str, two: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py", f"backbone={two}", f"backbone.second.{name}=64"])
    with pytest.raises(SystemExit, match=rf"backbone\.second\.{name}=64: .*set backbone\.{name}=64"):
        main()


def described(folder: Path, shards: Path, model: str | None) -> str:
    """A shard set with captions of this model."""
    manifest = open_shard_set(str(shards)).manifest
    folder.mkdir()
    (folder / manifest.shards[0].name).touch()
    captioning = None if model is None else Captioning(model, "0" * 64, 20, "1" * 64)
    (folder / FILE_NAME).write_bytes(replace(manifest, captioning=captioning).to_bytes())
    return str(folder)


def test_captioner_needs_captions_of_one_model(config, scene_shards: Path, tmp_path: Path) -> None:
    sets = {name: described(tmp_path / name, scene_shards, name) for name in ("one", "other")}
    bare = described(tmp_path / "bare", scene_shards, None)
    blip = ["captioner=blip", f"data.train={sets['one']}"]
    check_training(config(*blip, f"data.val={sets['one']}"))
    text = problems(config(*blip, f"data.val={{a: {bare}}}"))
    assert f"odise captions --shards {bare}" in text
    assert "data.train" not in text
    assert "captions differ" in problems(config(*blip, f"data.val={sets['other']}"))
    lacking = config(*blip, f"data.val={bare}")
    with pytest.raises(SettingError, match="has no generated captions"):
        check_network(NetworkSettings.of_config(lacking), lacking.paths, lacking)


def test_evaluation_needs_either_checkpoint_or_predictions(config, tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").touch()
    check_evaluation(config(f"ckpt={tmp_path}/a.ckpt", name="evaluate"))
    check_evaluation(config(f"predictions={tmp_path}", name="evaluate"))
    for bad in (
        [],
        [f"ckpt={tmp_path}/b.ckpt"],
        [f"ckpt={tmp_path}/a.ckpt", f"predictions={tmp_path}"],
        [f"predictions={tmp_path}/nowhere"],
        [f"predictions={tmp_path}", f"save_predictions={tmp_path}/x"],
    ):
        with pytest.raises(SettingError):
            check_evaluation(config(*bad, name="evaluate"))


def test_split_of_an_evaluation_fits_its_data(config, tmp_path: Path) -> None:
    predictions = f"predictions={tmp_path}"
    check_evaluation(config(predictions, "+data.unseen=[ball]", name="evaluate"))
    for bad in (["split=voc15"], ["+data.unseen=[ball]", "vocabulary.train=coco_panoptic"]):
        with pytest.raises(SettingError, match=r"data\.unseen"):
            check_evaluation(config(predictions, *bad, name="evaluate"))


def test_wrapped_user_error_is_reported() -> None:
    def library() -> None:
        try:
            raise SettingError("there is no such thing")
        except SettingError as cause:
            raise RuntimeError("wrapped") from cause

    with pytest.raises(SystemExit, match="error: there is no such thing"), report_user_errors():
        library()
    with pytest.raises(ZeroDivisionError), report_user_errors():
        _ = 1 / 0
    one, other = OSError("disk full"), ValueError("not logged")
    one.__context__, other.__context__ = other, one  # circular
    assert find_user_error(other) is None
    wrapped = InstantiationException("unexpected keyword argument")
    assert find_user_error(wrapped) is wrapped
    text = "Error in call to target 'a.b.BackboneSettings':\nTypeError(\"BackboneSettings.__init__() got an "
    text += "unexpected keyword argument 'trained'\")\nfull_key: model.backbone"
    with (
        pytest.raises(SystemExit, match=r"error: backbone\.trained: .*~backbone\.trained"),
        report_user_errors(),
    ):
        raise InstantiationException(text)
    wrapped.__cause__ = RuntimeError()
    wrapped.__cause__.__cause__ = cause = SettingError("there is no such thing")
    assert find_user_error(wrapped) is cause


def test_invalid_trainer_options_are_reported() -> None:
    from lightning import Trainer

    with pytest.raises(SystemExit, match=r"error: .*devices"), report_user_errors():
        Trainer(accelerator="cpu", devices=0)


def test_modules_do_not_import_torch() -> None:
    modules = ", ".join(f"odise_pl.runs.{name}" for name in ("checks", "resume", "report", "sweep"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "override",
    [
        *("data.batch_size=0", "data.limit_samples=true", "data.num_workers=-1", "data.scale_range=[2.0]"),
        *("model.head.heads=x", "model.head.channels=100", "model.head.queries=null"),
        *("backbone.window=100", "backbone.window=whle", "backbone.channels=0"),
        *("criterion.oversample=0", "fusion.seen_share=2", "optimizer.lr=0", "optimizer.milestones=[1.5]"),
        "callbacks.checkpoint.keep=0",
    ],
)
def test_constructors_name_invalid_numbers(config, override: str) -> None:
    made = config(override)
    section = override.partition(".")[0]
    build = {
        "callbacks": lambda: instantiate(made.callbacks.checkpoint),
        **dict.fromkeys(("data", "criterion", "optimizer"), lambda: instantiate(made[section])),
    }
    name = re.escape(override.partition("=")[0].split(".")[-1])
    with pytest.raises(Exception, match=name) as error:
        build.get(section, lambda: NetworkSettings.of_config(made).build(made.paths))()
    assert find_user_error(error.value) is not None
