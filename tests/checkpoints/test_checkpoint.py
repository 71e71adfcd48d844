from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pytest
import tiny_models
import torch
from torch import nn

from odise_pl.checkpoints.command import export_checkpoint
from odise_pl.checkpoints.metadata import describe
from odise_pl.checkpoints.official_names import UNUSED, to_official, to_ours
from odise_pl.checkpoints.weights import (
    export_official,
    load_trainable_state,
    load_weights,
    trainable_parameters,
)
from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher
from odise_pl.models.backbones.clip import FrozenCLIP
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.classifiers.fusion import ClassifierSettings
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import Odise
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
        for _, parameter in sorted(trainable_parameters(model).items()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
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
    state = {to_official(n, supervision): t.detach().clone() for n, t in trainable_parameters(model).items()}
    return {"model": {**state, "criterion.empty_weight": torch.tensor([1.0, 0.1])}, "iteration": 92187}


def save_official(model: Odise, supervision: str, path: Path) -> Path:
    torch.save(official(model, supervision), path)
    return path


@BOTH
def test_full_size_network_has_published_names_and_shapes(
    supervision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tokens have no values there
    monkeypatch.setattr(FrozenCLIP, "encode_text", lambda self, texts: torch.empty(1, self.embed_dim))
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
    own = trainable_parameters(model)
    names = {name: to_official(name, supervision) for name in own}
    assert {str(names[name]): list(value.shape) for name, value in own.items()} == {
        name: shape for name, shape in published.items() if name not in UNUSED
    }
    assert all(to_ours(str(official)) == name for name, official in names.items())
    for unknown in ("", *UNUSED, "xbackbone.feature_projections.0.0.conv1.weight"):
        assert to_ours(unknown) is to_official(unknown, supervision) is None


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    source, target = network(seed=1), network(seed=2)
    data = official(source)
    torch.save({"model": {n: t.half() for n, t in data["model"].items()}}, tmp_path / "half.pth")
    load_weights(target, tmp_path / "half.pth")
    rounded = {n: t.detach().half().float() for n, t in trainable_parameters(source).items()}
    assert same(trainable_parameters(target), rounded)


SCALE = "sem_seg_head.predictor.post_mask_embed.logit_scale"
QUERIES = "sem_seg_head.predictor.query_feat.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop(SCALE), r"1 missing \(mask_decoder.embedding.log_scale\)"),
        (lambda m: m.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda m: m.update({QUERIES: torch.ones(3, 32)}),
            r"query_feat.weight: \(3, 32\) in the file, \(10, 32\) in the model\)",
        ),
        (lambda m: m.update({SCALE: "text"}), r"log_scale: \('no tensor',\) in the file"),
        (lambda m: m[QUERIES].view(-1)[:1].fill_(float("nan")), "query_feat.weight holds NaN"),
    ],
)
def test_unfit_weights_are_named_and_nothing_is_loaded(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    data = official(network(seed=1))
    change(data["model"])
    torch.save(data, tmp_path / "odd.pth")
    target = network(seed=2)
    before = deepcopy(trainable_parameters(target))
    with pytest.raises(WeightsError, match=rf"odd\.pth.* .*{message}"):
        load_weights(target, tmp_path / "odd.pth")
    assert same(trainable_parameters(target), before)


def test_checkpoint_of_other_settings_names_them(tmp_path: Path) -> None:
    path = save_official(network("caption"), "caption", tmp_path / "caption.pth")
    with pytest.raises(WeightsError, match=r"object_head.*model=odise_label or"):
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


@pytest.mark.parametrize(("supervision", "weights"), [("label", [1, 1, 1, 0.1]), ("caption", [1, 0.1])])
def test_export_loads_bit_equal(tmp_path: Path, supervision: str, weights: list[float]) -> None:
    source, target = network(supervision, 1), network(supervision, 2)
    export_checkpoint(save_ours(source, tmp_path / "a.ckpt", step=700), tmp_path / "b.pth")
    exported = read_checkpoint(tmp_path / "b.pth")
    assert set(exported) == {"model", "iteration"}
    assert exported["iteration"] == 699
    torch.testing.assert_close(exported["model"][UNUSED[0]], torch.tensor(weights))
    load_weights(target, tmp_path / "b.pth")
    assert same(trainable_parameters(target), trainable_parameters(source))


def test_failed_export_writes_no_file(tmp_path: Path) -> None:
    theirs = save_official(network(), "label", tmp_path / "a.pth")
    ours = save_ours(network(), tmp_path / "a.ckpt")
    odd = network()
    odd.extra = nn.Linear(2, 2)
    spoiled = network()
    with torch.no_grad():
        spoiled.mask_decoder.query_feat.weight[0, 0] = float("nan")
    for source, target, message in (
        (theirs, "x", r"a\.pth.*official"),
        (ours, "nowhere/x", r"cannot write .*nowhere/x"),
        (save_ours(odd, tmp_path / "odd.ckpt"), "x", r"2 of the weights .*extra\.bias"),
        (save_ours(spoiled, tmp_path / "b.ckpt"), "x", r"b\.ckpt: .* holds NaN or infinity"),
    ):
        with pytest.raises(WeightsError, match=message):
            export_official(source, tmp_path / target)
    assert not (tmp_path / "x").exists()


# of fcclip_cocopan.pth, as far as they are known
FC_CLIP = {
    "void_embedding.weight": "text_projection.null_embed",
    "sem_seg_head.predictor.logit_scale": "mask_decoder.embedding.log_scale",
    "sem_seg_head.predictor._mask_pooling_proj.0.weight": "mask_decoder.embedding.pool_norm.weight",
    "sem_seg_head.predictor._mask_pooling_proj.1.bias": "mask_decoder.embedding.pool_proj.bias",
    "sem_seg_head.predictor.class_embed.layers.2.weight": "mask_decoder.embedding.query_mlp.layers.2.weight",
    "sem_seg_head.predictor.mask_embed.layers.0.weight": "mask_decoder.mask_mlp.layers.0.weight",
    "sem_seg_head.pixel_decoder.input_proj.0.0.weight": "pixel_decoder.input_proj.0.conv.weight",
}


def test_official_checkpoint_of_fc_clip_is_known_and_loads(tmp_path: Path) -> None:
    model, path = tiny_models.fc_clip(), tmp_path / "fcclip.pth"
    changed = {
        "text_projection.null_embed": "void_embedding.weight",
        "mask_decoder.embedding.log_scale": "sem_seg_head.predictor.logit_scale",
    }
    predictor = "sem_seg_head.predictor."
    for part, name in (
        ("pool_norm", "_mask_pooling_proj.0"),
        ("pool_proj", "_mask_pooling_proj.1"),
        *((f"query_mlp.layers.{i}", f"class_embed.layers.{i}") for i in range(3)),
    ):
        changed |= {
            f"mask_decoder.embedding.{part}.{w}": f"{predictor}{name}.{w}" for w in ("weight", "bias")
        }
    state = {
        changed.get(n) or to_official(n, "label"): torch.randn(p.shape)
        for n, p in trainable_parameters(model).items()
    }
    assert set(FC_CLIP) <= set(state)
    torch.save({"model": state | {UNUSED[0]: torch.ones(3)}, "iteration": 5}, path)
    assert describe(path).preset == "method=fc_clip"
    load_weights(model, path)
    for official, ours in FC_CLIP.items():
        assert to_ours(official) == ours
        assert torch.equal(model.get_parameter(ours), state[official])
    del state["void_embedding.weight"]
    torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match="null_embed"):
        load_weights(model, path)


def test_a_new_part_may_be_missing_as_a_whole() -> None:
    model = nn.ModuleDict({"old": nn.Linear(2, 2), "added": nn.Linear(2, 2)})
    before, state = deepcopy(model.added), {"old.weight": torch.ones(2, 2), "old.bias": torch.zeros(2)}
    load_trainable_state(model, state, "it", new_part="added")
    assert torch.equal(model.old.weight, torch.ones(2, 2))
    assert same(dict(model.added.named_parameters()), dict(before.named_parameters()))
    for part, held in ((None, state), ("added", state | {"added.bias": torch.zeros(2)}), ("old", state)):
        with pytest.raises(WeightsError, match=r"missing \(added\.(bias|weight)"):
            load_trainable_state(model, held, "it", part)
