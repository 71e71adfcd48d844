"""Pre-training of the small members of the table of representations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from odise_pl.models.backbones.clip import load_clip
from odise_pl.models.backbones.timm_features import TimmFeatures
from odise_pl.models.weights import WeightsError, read_checkpoint
from odise_pl.toyworld.make import KINDS
from odise_pl.toyworld.things import THINGS
from scripts.pretrain_toyworld import diffusion, representations
from scripts.pretrain_toyworld.__main__ import Kind, app
from scripts.pretrain_toyworld.corpus import Corpus, paint_corpus
from scripts.pretrain_toyworld.diffusion import diffusion_batch
from scripts.pretrain_toyworld.networks import CLIP, CLIP_FILE, DIFFUSION_FOLDER, MEMBERS, WEIGHTS, backbone
from scripts.pretrain_toyworld.probe import probe
from scripts.pretrain_toyworld.representations import (
    PASSES,
    TRAININGS,
    MaskedPixels,
    SelfDistillation,
    balance,
    create,
    labels_batch,
    masked_batch,
    pretrain,
    recipe_of,
    views_batch,
)
from scripts.pretrain_toyworld.training import Batch


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Some pictures; painting needs no other processes."""
    for module in (representations, diffusion):
        monkeypatch.setattr(module, "paint_corpus", partial(paint_corpus, workers=1))
    return paint_corpus(8, workers=1)


def network(kind: str) -> Any:
    torch.manual_seed(0)
    return create(kind)


def test_labels_are_what_captions_name() -> None:
    for picture in paint_corpus(20, workers=1):
        found = [KINDS[number] for number in picture.kinds]
        assert any(one not in THINGS for one in found), "stuff"
        assert any(detail.thing for detail in picture.details) == any(one in THINGS for one in found)
        for caption in (caption for detail in picture.details for caption in detail.captions):
            names = [name for one in found for name in (one.name, *one.synonyms)]
            assert any(name in caption.lower() for name in names)


@pytest.mark.parametrize(
    ("kind", "make_batch"),
    [("supervised_conv", labels_batch), ("supervised_vit", labels_batch), ("dino", views_batch)],
)
def test_networks_of_any_size_learn_from_two(
    painted: Corpus, kind: str, make_batch: Callable[..., Batch]
) -> None:
    sides = []
    for number in range(8):
        batch = TRAININGS[kind].batch(painted, 2, np.random.default_rng(number), number)
        full = make_batch(painted, 2, np.random.default_rng(number), number)
        ratios = {full[name].shape[3] / batch[name].shape[3] for name in batch if batch[name].ndim == 4}
        assert len(ratios) == 1, "views and their parts"
        sides.append(full["images"].shape[3] / ratios.pop())
        if number == 3:
            torch.testing.assert_close(batch, full)
    assert sides == [64, 64, 64, 128] * 2


def test_labels_batch_marks_what_is_present(painted: Corpus) -> None:
    batch = labels_batch(painted, 6, np.random.default_rng(0), 0)
    assert batch["images"].shape == (6, 3, 128, 128)
    known = {tuple(one.kinds) for one in painted}
    assert all(tuple(row.nonzero()[:, 0].tolist()) in known for row in batch["present"])


def test_hidden_pixels_reach_only_the_loss(painted: Corpus) -> None:
    task = MaskedPixels(network("mae")).eval()
    batch = masked_batch(painted, 2, np.random.default_rng(0), 0)
    shown = torch.zeros(2, 256).scatter(1, batch["patches"], 1.0)
    assert shown.sum(1).tolist() == [64, 64]
    mask = shown.view(2, 1, 16, 16).repeat_interleave(8, 2).repeat_interleave(8, 3)
    loss = task(batch)
    before = task.member.tokens(batch["images"])
    other = batch | {"images": batch["images"] * mask + 0.5 * (1 - mask)}
    changed = task(other)
    torch.testing.assert_close(task.member.tokens(other["images"]), before)
    assert not torch.isclose(changed, loss)
    loss.backward()
    assert all(p.grad is not None for name, p in task.named_parameters())


def test_dino_compares_views_of_one_picture(painted: Corpus) -> None:
    batch = views_batch(painted, 3, np.random.default_rng(0), 0)
    assert batch["images"].shape == (6, 3, 128, 128)
    assert batch["parts"].shape == (12, 3, 64, 64)
    task = SelfDistillation(network("dino"))
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    first = task(batch)
    first.backward()
    assert not any(p.requires_grad for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.student.parameters())
    optimizer.step()
    task(batch)
    pairs = zip(task.teacher.module.parameters(), task.student.parameters(), strict=True)
    assert any(not torch.equal(slow, fast) for slow, fast in pairs)


def test_no_prototype_wins_everywhere() -> None:
    scores = 0.2 * torch.rand(64, 8, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 0.5
    shares = balance(scores)
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    torch.testing.assert_close(shares.sum(0), torch.full((8,), 8.0), rtol=0.2, atol=0)


@pytest.mark.parametrize("kind", TRAININGS)
def test_written_member_is_a_backbone(kind: str, painted: Corpus, tmp_path: Path) -> None:
    (tmp_path / MEMBERS).mkdir()
    with pytest.raises(WeightsError, match=rf"{kind}\.safetensors"):
        backbone(f"toy_{kind}", tmp_path).load()
    per_picture = TRAININGS[kind].passes
    recipe = recipe_of(4 * per_picture, per_picture, pictures=8, batch=2)
    assert recipe.steps == 2
    pretrain(kind, recipe, tmp_path, tmp_path)
    features, condition = backbone(f"toy_{kind}", tmp_path).load()
    assert condition is None
    assert isinstance(features, TimmFeatures)
    assert [tap.stride for tap in features.taps] == [4, 8, 16, 32]
    tensors = read_checkpoint(tmp_path / MEMBERS / f"{kind}.safetensors")
    start = network(kind).state_dict()
    assert tensors.keys() == start.keys()
    assert any(not torch.equal(t.float(), start[name].half().float()) for name, t in tensors.items())
    own = features.model.state_dict()
    assert all(torch.equal(own[name], tensors[name].float()) for name in own)


def test_class_conditional_diffusion_is_a_backbone(
    painted: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(WEIGHTS / DIFFUSION_FOLDER / "vae", tmp_path / DIFFUSION_FOLDER / "vae")
    sides = []

    def recorded(latents: Tensor, *args: Any) -> Batch:
        sides.append(latents.shape[-1])
        return diffusion_batch(latents, *args)

    monkeypatch.setattr(diffusion, "diffusion_batch", recorded)
    diffusion.pretrain_on_classes(recipe_of(8, pictures=3, batch=2), tmp_path, tmp_path)
    assert sides == [8, 8, 8, 16]
    features, condition = backbone("toy_class_conditional_diffusion", tmp_path).load()
    assert condition is not None
    assert condition.encode is not None
    cat, ball = condition.encode(["cat", "ball"])
    assert not torch.equal(cat, ball)
    assert not torch.equal(cat, condition.uncond[0])
    assert {tap.stride for tap in features.taps} == {4, 8, 16, 32, 64}
    start = backbone("toy_class_conditional_diffusion").load()[0]
    assert features.unet.config.cross_attention_dim == start.unet.config.cross_attention_dim


def test_clip_tower_is_that_of_open_clip() -> None:
    features, _ = backbone("toy_clip", WEIGHTS).load()
    visual = load_clip(str(WEIGHTS / CLIP_FILE), CLIP).visual.eval()
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert isinstance(features, TimmFeatures)
    with torch.no_grad():
        tokens = visual._embeds((images - features.mean) / features.std)
        for block, found in zip(visual.transformer.resblocks, features(images), strict=True):
            tokens = block(tokens)
            torch.testing.assert_close(found, tokens[:, 1:].mT.unflatten(2, (16, 16)), rtol=0, atol=1e-4)


def test_all_kinds_see_equally_many_images() -> None:
    passes = {name: training.passes for name, training in TRAININGS.items()}
    assert {recipe_of(PASSES, each).steps * 32 * each for each in passes.values()} == {PASSES}
    assert set(Kind) == passes.keys() | {"class_conditional_diffusion", "clip_conv"}


@pytest.mark.usefixtures("painted")
def test_command_trains_and_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representations, "_PICTURES", 8)
    arguments = ["representation", "mae", "--passes", "32", "--out", str(tmp_path), "--work", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    file = tmp_path / "probe.json"
    arguments = ["probe", "toy_mae", "--weights", str(tmp_path), "--count", "2", "--json", str(file)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    shares = json.loads(file.read_text())["backbones"]["toy_mae"]
    assert [*shares] == ["trained", "random"]
    assert result.stdout.splitlines() == [
        f"toy_mae, {made}: {own['things']:.1f} % of things and {own['stuff']:.1f} % of stuff"
        for made, own in shares.items()
    ]


@pytest.mark.slow
def test_probe_prefers_trained_weights() -> None:
    trained, random = probe(backbone("toy_clip", WEIGHTS), 40), probe(backbone("toy_clip"), 40)
    assert trained[0] > random[0] + 0.1
    assert trained[1] > random[1] + 0.1
