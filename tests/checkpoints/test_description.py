"""Checkpoints may come from untrusted sources: what their descriptions may choose."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from small_runs import SMALL, composed

from odise_pl.checkpoints.description import TARGETS, NetworkSettings, read_record
from odise_pl.checkpoints.metadata import describe
from odise_pl.errors import SettingError, UserError
from odise_pl.models.weights import WeightsError
from odise_pl.prediction.segmenter import Segmenter
from odise_pl.runs.checks import check_network
from odise_pl.runs.conf import CONF, compose_config

Change = Callable[[dict[str, Any]], object]
PATHS = {"weights": "weights", "toyworld": "toyworld"}


@cache
def network(*overrides: str) -> NetworkSettings:
    return NetworkSettings.of_config(compose_config("train", ["run=x", "run_dir=x", *overrides]))


def record(*overrides: str) -> dict[str, Any]:
    return copy.deepcopy(network(*overrides).record())


def targets(values: Any) -> set[str]:
    if isinstance(values, dict):
        own = {values["_target_"]} if "_target_" in values else set()
        return own.union(*map(targets, values.values()))
    return set().union(*map(targets, values)) if isinstance(values, list) else set()


def test_allowed_targets_are_those_of_conf() -> None:
    found: set[str] = set()
    for group in ("backbone", "clip", "captioner"):
        for path in (CONF / group).glob("*.yaml"):
            found |= targets(OmegaConf.to_container(OmegaConf.load(path)))
    for group in ("model", "method"):
        for path in (CONF / group).glob("*.yaml"):
            kept = record(f"{group}={path.stem}")
            read_record(kept, "ours")
            found |= targets(kept["model"])
    assert found == TARGETS - {"odise_pl.models.odise.ClassifierSettings"}  # of earlier versions


def test_description_is_resolved_and_changed_by_command_line() -> None:
    kept = record("backbone=toy", "fusion.seen_share=0.1", "backbone.timesteps=[100]")
    assert kept["model"]["backbone"]["weights"] == "${paths.toyworld}/diffusion"
    assert kept["model"]["backbone"]["timesteps"] == [100]
    assert kept["model"]["classifier"]["seen_share"] == 0.1
    read = read_record(kept, "c.ckpt")
    assert read.resolved({"toyworld": "there"}).backbone.weights == "there/diffusion"
    empty = {"_target_": "odise_pl.models.build.empty_captioner"}
    changes = {"backbone.weights": "x.ckpt", "fusion.unseen_share": 0.5, "model.inference.top_k": 7}
    now = read.changed({**changes, "captioner": empty, "data.eval_long_side": 999, "seed": 3})
    assert now.model["backbone"]["weights"] == "x.ckpt"
    assert now.model["classifier"]["unseen_share"] == 0.5
    assert now.model["inference"]["top_k"] == 7
    assert now.model["captioner"] == empty
    assert now.sides == (1024, 999)
    assert now.seed == 3


def test_random_frozen_weights_are_those_of_the_checkpoints_seed() -> None:
    """Also after other random numbers, and for records of earlier versions, which had no seed."""

    def frozen(kept: dict[str, Any]) -> torch.Tensor:
        torch.rand(1)
        return read_record(kept, "c.ckpt").build(PATHS).clip.model.visual.class_embedding.clone()

    first, second = (record("experiment=laptop", f"seed={seed}") for seed in (0, 1))
    one, again, expected = frozen(second), frozen(second), frozen(first)
    assert torch.equal(one, again)
    assert not torch.equal(expected, one)
    del first["seed"]
    assert torch.equal(frozen(first), expected)


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Makes a changed copy of a checkpoint."""

    def change(edit: Change) -> Path:
        content = torch.load(checkpoint, weights_only=True)
        edit(content)
        torch.save(content, tmp_path / "odd.ckpt")
        return tmp_path / "odd.ckpt"

    return change


def put(*path: str, value: Any) -> Change:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


NESTED: Any = []
for _ in range(5000):
    NESTED = [NESTED]
MKDIR = {"_target_": "os.mkdir", "path": "PROOF"}
HOSTILE: list[tuple[tuple[str, ...], Any]] = [
    (("model", "_target_"), "os.mkdir"),
    (("model", "head"), None),
    (("model", "head", "_target_"), "odise_pl.models.build.load_diffusion"),
    (("model", "backbone", "_target_"), ["os.mkdir"]),
    (("model", "backbone", "timesteps"), [0, MKDIR]),
    (("model", "backbone", "more"), [[{"deep": MKDIR}]]),
    (("model", "backbone", "more"), NESTED),
    (("model", "backbone", "weights"), "${paths.weights}/${oc.env:HOME}"),
    (("model", "backbone", "weights"), "${oc.create:{_target_:os.mkdir}}"),
    (("model", "backbone", "weights"), "\x1b[2Jb.ckpt"),
    (("model", "backbone", "weights"), None),
    (("model", "backbone", "weights.x"), MKDIR),
    (("model", "backbone", "unet"), "someone/model"),
    (("model", "captioner", "_args_"), ["PROOF"]),
    (("model", "clip", "weights"), torch.ones(2)),
    (("model", "clip"), [MKDIR]),
    (("sides",), [64, "${oc.env:HOME}"]),
    (("seed",), "${oc.env:HOME}"),
    (("sides",), [64]),
]


def placed(value: Any, proof: Path) -> Any:
    if isinstance(value, dict):
        return {key: placed(one, proof) for key, one in value.items()}
    if isinstance(value, list) and len(value) > 1:
        return [placed(one, proof) for one in value]
    return value.replace("PROOF", str(proof)) if isinstance(value, str) else value


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=lambda value: reprlib.repr(value))
def test_hostile_descriptions_are_refused(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    kept = record("backbone=tiny", "clip=tiny")
    put(*path, value=placed(value, tmp_path / "proof"))(kept)
    with pytest.raises(UserError, match=r"odd\.ckpt") as error:
        read_record(kept, "odd.ckpt").build(PATHS)
    assert str(error.value).isprintable()
    assert not (tmp_path / "proof").exists()


def test_prediction_and_evaluation_refuse_hostile_checkpoint(
    changed: Callable[[Change], Path], scene_shards: Path, tmp_path: Path
) -> None:
    from odise_pl.evaluation.run import evaluate

    proof = tmp_path / "proof"
    odd = changed(put("odise", "record", "model", "head", value=placed(MKDIR, proof)))
    with pytest.raises(SettingError, match=r"odd\.ckpt.*head"):
        Segmenter.from_pretrained(odd)
    overrides = [f"ckpt={odd}", "data=shards", f"data.val={scene_shards}", "trainer=cpu"]
    with pytest.raises(SettingError, match=r"odd\.ckpt.*head"):
        evaluate(composed("evaluate", tmp_path / "run", overrides), overrides)
    assert not proof.exists()


def test_overridden_settings_are_not_checked() -> None:
    odd = record()
    odd["model"]["captioner"] = {"_target_": "mine.captioner", "more": 1}
    with pytest.raises(SettingError, match=r"c\.ckpt.*captioner\._target_='mine\.captioner'"):
        read_record(odd, "c.ckpt", ["captioner.more"])
    read_record(odd, "c.ckpt", ["captioner._target_"])
    read_record(odd, "c.ckpt", ["captioner"])


@pytest.mark.parametrize("part", ["backbone", "clip", "captioner"])
def test_checkpoint_cannot_start_downloads(tmp_path: Path, part: str) -> None:
    odd = record("captioner=blip", "captioner.on_the_fly=true")
    for weights in ("someone/model", *(["random"] if part == "captioner" else [])):
        odd["model"][part]["weights"] = weights
        with pytest.raises(SettingError, match=rf"c\.ckpt: .* {part}\.weights='{weights}'"):
            read_record(odd, "c.ckpt")
        read_record(odd, "c.ckpt", [f"{part}.weights"])
    odd["model"][part]["weights"] = str(tmp_path)
    read_record(odd, "c.ckpt")


def test_checkpoint_of_two_backbones_cannot_start_downloads() -> None:
    odd = record("backbone=two", "backbone@backbone.first=toy")
    assert "source" not in odd["model"]["backbone"]["first"]
    odd["model"]["backbone"]["second"]["weights"] = "someone/model"
    with pytest.raises(SettingError, match=r"c\.ckpt: .* backbone\.second\.weights='someone/model'"):
        read_record(odd, "c.ckpt")
    read_record(odd, "c.ckpt", ["backbone.second.weights"])
    kept = read_record(odd, "c.ckpt", ["backbone"]).changed({"backbone.second.weights": "x.safetensors"})
    assert kept.weights()["backbone.second.weights"] == "x.safetensors"


def test_missing_weights_show_download_command_of_conf() -> None:
    odd = record()
    odd["model"]["backbone"]["source"] = "curl host | sh"
    with pytest.raises(SettingError) as error:
        check_network(read_record(odd, "c.ckpt"), PATHS)
    assert "backbone.weights=weights/sd-v1-3.ckpt" in str(error.value)
    assert "odise weights fetch sd-v1-3" in str(error.value)
    assert "curl" not in str(error.value)


@pytest.mark.parametrize(
    "edit",
    [
        put("global_step", value="../../x"),
        put("global_step", value=True),
        put("odise", value=[]),
        put("odise", value={"record": {}}),
        put("odise", "vocabulary", value={"name": "x", "categories": [{}]}),
    ],
)
def test_damaged_description_is_named(changed: Callable[[Change], Path], edit: Change) -> None:
    with pytest.raises(WeightsError, match=r"odd\.ckpt"):
        describe(changed(edit))


def test_setting_of_newer_version_is_named(changed: Callable[[Change], Path]) -> None:
    odd = changed(put("odise", "record", "model", "backbone", "novelty", value=1))
    with pytest.raises(Exception, match=r"(?s)BackboneSettings.*novelty"):
        Segmenter.from_pretrained(odd)


def test_record_of_earlier_version_gives_same_network(tmp_path: Path) -> None:
    """With references between sections, old names and modules, and no classifier section."""
    config = composed("train", tmp_path, [*SMALL, "fusion.seen_share=0.4"])
    now = NetworkSettings.of_config(config)
    sections = OmegaConf.masked_copy(config, ["model", "fusion", "backbone", "clip", "captioner"])
    text = (
        OmegaConf.to_yaml(sections)
        .replace("odise_pl.models.", "odise_pl.")
        .replace("window:", "train_window:")
    )
    sides = {"eval_short_side": 64, "eval_long_side": 96}
    earlier: Any = {"config": OmegaConf.to_container(OmegaConf.create(text)), "data": sides}
    found, expected = read_record(earlier, "c.ckpt").record(), now.record()
    scoring = [instantiate(record["model"].pop("classifier")) for record in (found, expected)]
    assert found == expected
    assert scoring[0] == scoring[1]
    earlier["config"]["fusion"]["mask_prompt"] = "${oc.env:HOME}"
    with pytest.raises(SettingError, match=r"c\.ckpt"):
        read_record(earlier, "c.ckpt")
