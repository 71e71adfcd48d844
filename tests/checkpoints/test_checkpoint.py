from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pytest
import tiny_models
import torch
from torch import nn
from typer.testing import CliRunner

from odise_pl.checkpoints.command import app
from odise_pl.checkpoints.io import (
    export_official,
    import_official,
    load_trainable_state,
    load_weights,
    official_shapes,
    recognise,
    trainable_names,
    trainable_state,
)
from odise_pl.checkpoints.official_names import UNUSED, to_official, to_ours
from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.training.module import OdiseModule
from odise_pl.training.optimization import OptimizerSettings

FIXTURES = Path(__file__).parents[1] / "fixtures"
BOTH = pytest.mark.parametrize("supervision", ["label", "caption"])
VOCABULARY = tiny_models.vocabulary(("person",), ("sky", "clouds"), ("dog",))


@cache
def built(supervision: str, timesteps: tuple[int, ...]) -> Odise:
    return tiny_models.odise(supervision, timesteps=timesteps)


def network(supervision: str = "label", seed: int = 0, timesteps: tuple[int, ...] = (0,)) -> Odise:
    """A network with random trainable weights; its frozen weights are always the same."""
    model = deepcopy(built(supervision, timesteps))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(trainable_names(model)):
            parameter = model.get_parameter(name)
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def save_ours(model: Odise, path: Path, step: int = 0) -> Path:
    """Save as the trainer does."""
    module = OdiseModule(
        model, SetCriterion(HungarianMatcher(), LossWeights()), OptimizerSettings(), VOCABULARY, {}, 1
    )
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer = trainer
    trainer.strategy.connect(module)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
    trainer.save_checkpoint(path, weights_only=True)
    return path


def official(model: Odise, supervision: str = "label") -> dict[str, Any]:
    """The content of an official checkpoint."""
    state = {to_official(n, supervision): t.clone() for n, t in trainable_state(model).items()}
    return {"model": {**state, "criterion.empty_weight": torch.tensor([1.0, 0.1])}, "iteration": 92187}


def save_official(model: Odise, supervision: str, path: Path) -> Path:
    torch.save(official(model, supervision), path)
    return path


@BOTH
def test_full_size_network_has_published_names_and_shapes(supervision: str) -> None:
    with torch.device("meta"):  # shapes without memory
        model = build_odise(
            BackboneSettings(),
            ClipSettings(),
            implicit_captioner(),
            HeadSettings(),
            ClassifierSettings(),
            InferenceSettings(),
            supervision,
        )
    published = json.loads((FIXTURES / f"official_{supervision}_checkpoint_keys.json").read_text())
    own = {name: list(shape) for name, shape in official_shapes(model).items()}
    assert own == {name: shape for name, shape in published.items() if name not in UNUSED}
    assert set(published) - set(own) == set(UNUSED)


@BOTH
def test_published_names_translate_both_ways(supervision: str) -> None:
    published = json.loads((FIXTURES / f"official_{supervision}_checkpoint_keys.json").read_text())
    names = {name: to_ours(name) for name in published if name not in UNUSED}
    assert len(set(names.values())) == len(names)
    assert {to_official(str(ours), supervision): ours for ours in names.values()} == names


@pytest.mark.parametrize(
    "name", ["", "criterion.empty_weight", "xbackbone.feature_projections.0.0.conv1.weight"]
)
def test_unknown_names_have_no_translation(name: str) -> None:
    assert to_ours(name) is None
    assert to_official(name, "label") is None


@BOTH
@pytest.mark.parametrize("kind", ["ours", "official"])
def test_checkpoints_fill_every_trainable_weight(tmp_path: Path, supervision: str, kind: str) -> None:
    source, target = network(supervision, 1), network(supervision, 2)
    path = tmp_path / "a.ckpt"
    save_ours(source, path) if kind == "ours" else save_official(source, supervision, path)
    assert load_weights(target, path) == kind
    assert same(trainable_state(target), trainable_state(source))


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    data = official(source)
    torch.save({"model": {n: t.half() for n, t in data["model"].items()}}, tmp_path / "half.pth")
    load_weights(target, tmp_path / "half.pth")
    rounded = {n: t.half().float() for n, t in trainable_state(source).items()}
    assert same(trainable_state(target), rounded)


SCALE = "sem_seg_head.predictor.post_mask_embed.logit_scale"
QUERIES = "sem_seg_head.predictor.query_feat.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(SCALE), rf"1 missing \({SCALE}\)"),
        (lambda m: m.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda m: m.update({QUERIES: torch.ones(3, 32)}),
            rf"1 of another shape \({QUERIES}: \(3, 32\) in the file, \(10, 32\) in the model\)",
        ),
        (lambda m: m.update({SCALE: "text"}), rf"{SCALE}: \('no tensor',\) in the file"),
        (lambda m: [m.pop(n) for n in list(m)[5:]], r"missing \(.*, \.\.\.\)"),
    ],
)
def test_mismatches_are_named_and_nothing_is_loaded(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    data = official(network(seed=1))
    change(data["model"])
    torch.save(data, tmp_path / "odd.pth")
    target = network(seed=2)
    before = deepcopy(trainable_state(target))
    with pytest.raises(WeightsError, match=rf"odd\.pth does not fit this model: .*{message}"):
        load_weights(target, tmp_path / "odd.pth")
    assert same(trainable_state(target), before)


def test_checkpoint_of_other_settings_names_them(tmp_path: Path) -> None:
    path = save_official(network("caption"), "caption", tmp_path / "caption.pth")
    with pytest.raises(WeightsError, match=r"category_head.*class_embed.*model=odise_label or"):
        load_weights(network("label"), path)
    path = save_official(network(), "label", tmp_path / "one_step.pth")
    with pytest.raises(WeightsError, match=r"backbone\.timesteps"):
        load_weights(network(timesteps=(0, 100)), path)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"state_dict": {"model.diffusion_model.out.2.bias": torch.ones(1)}}, "model.diffusion_model.out"),
        ({"model": {"conv1.weight": torch.ones(1), "fc.bias": torch.ones(1)}}, "conv1.weight, fc.bias"),
        ({}, "nothing"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: dict[str, Any], shown: str) -> None:
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(WeightsError, match=rf"foreign\.pth.*{shown}"):
        load_weights(network(), tmp_path / "foreign.pth")


def test_unofficial_network_cannot_load_official_weights(tmp_path: Path) -> None:
    path = save_official(network(), "label", tmp_path / "odise.pth")
    model = network()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(WeightsError, match=r"2 .*extra\.bias"):
        load_weights(model, path)


@BOTH
def test_export_then_import_is_bit_equal(tmp_path: Path, supervision: str) -> None:
    source = network(supervision, 1)
    export_official(save_ours(source, tmp_path / "a.ckpt", step=700), tmp_path / "b.pth")
    exported = read_checkpoint(tmp_path / "b.pth")
    assert recognise(exported, "b") == "official"
    assert set(exported) == {"model", "iteration"}
    target = network(supervision, 2)
    assert load_weights(target, tmp_path / "b.pth") == "official"
    assert same(trainable_state(target), trainable_state(source))
    import_official(tmp_path / "b.pth", tmp_path / "c.ckpt")
    first, second = (read_checkpoint(tmp_path / name) for name in ("a.ckpt", "c.ckpt"))
    assert same(second["state_dict"], first["state_dict"])
    assert second["global_step"] == first["global_step"] == 700


@BOTH
def test_import_then_export_is_bit_equal(tmp_path: Path, supervision: str) -> None:
    path = save_official(network(supervision, 1), supervision, tmp_path / "a.pth")
    import_official(path, tmp_path / "b.ckpt")
    assert load_weights(network(supervision), tmp_path / "b.ckpt") == "ours"
    export_official(tmp_path / "b.ckpt", tmp_path / "c.pth")
    first, second = read_checkpoint(path), read_checkpoint(tmp_path / "c.pth")
    assert same(second["model"], first["model"])
    assert second["iteration"] == first["iteration"] == 92187


@pytest.mark.parametrize(("supervision", "weights"), [("label", [1, 1, 1, 0.1]), ("caption", [1, 0.1])])
def test_export_adds_class_weights(tmp_path: Path, supervision: str, weights: list[float]) -> None:
    export_official(save_ours(network(supervision), tmp_path / "a.ckpt"), tmp_path / "b.pth")
    found = read_checkpoint(tmp_path / "b.pth")["model"]["criterion.empty_weight"]
    torch.testing.assert_close(found, torch.tensor(weights))


def test_conversions_refuse_files_of_the_target_format(tmp_path: Path) -> None:
    ours = save_ours(network(), tmp_path / "a.ckpt")
    theirs = save_official(network(), "label", tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth.*official"):
        export_official(theirs, tmp_path / "x")
    with pytest.raises(WeightsError, match=r"a\.ckpt.*this project"):
        import_official(ours, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_import_refuses_unknown_names(tmp_path: Path) -> None:
    data = official(network())
    data["model"]["sem_seg_head.surprise"] = torch.ones(1)
    torch.save(data, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth: 1 unknown \(sem_seg_head.surprise\)"):
        import_official(tmp_path / "a.pth", tmp_path / "b.ckpt")


def test_failed_conversion_writes_no_file(tmp_path: Path) -> None:
    source = save_official(network(), "label", tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"cannot write .*nowhere/b\.ckpt"):
        import_official(source, tmp_path / "nowhere" / "b.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_commands_convert_both_ways(tmp_path: Path) -> None:
    save_ours(network(seed=1), tmp_path / "a.ckpt")
    for command, source, target in (("export", "a.ckpt", "b.pth"), ("import", "b.pth", "c.ckpt")):
        result = CliRunner().invoke(app, [command, str(tmp_path / source), str(tmp_path / target)])
        assert result.exit_code == 0
        assert target in result.output
    first, last = (read_checkpoint(tmp_path / name)["state_dict"] for name in ("a.ckpt", "c.ckpt"))
    assert same(first, last)


def spoiled(model: nn.Module) -> nn.Module:
    """The model with one NaN."""
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[0] = float("nan")
    return model


def test_non_finite_weights_are_refused(tmp_path: Path) -> None:
    ours = save_ours(spoiled(network(seed=1)), tmp_path / "a.ckpt")
    theirs = save_official(spoiled(network(seed=1)), "label", tmp_path / "b.pth")
    target = network(seed=2)
    before = deepcopy(trainable_state(target))
    for path in (ours, theirs):
        with pytest.raises(WeightsError, match=rf"{Path(path).name}: .* holds NaN or infinity"):
            load_weights(target, path)
    assert same(trainable_state(target), before)
    with pytest.raises(WeightsError, match=r"a\.ckpt: .* holds NaN or infinity"):
        export_official(ours, tmp_path / "x")
    with pytest.raises(WeightsError, match=r"b\.pth: .* holds NaN or infinity"):
        import_official(theirs, tmp_path / "x")
    with pytest.raises(WeightsError, match=r"the run: .* holds NaN or infinity"):
        load_trainable_state(target, trainable_state(spoiled(network(seed=1))), "the run")
    assert not (tmp_path / "x").exists()
