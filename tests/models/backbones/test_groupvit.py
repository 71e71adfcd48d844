"""GroupViT's encoders, in transformers' format and with interpolated positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import GROUPVIT
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from odise_pl.models.backbones.groupvit import (
    GroupViT,
    GroupViTSettings,
    build_groupvit_model,
    load_groupvit,
)
from odise_pl.models.weights import WeightsError


@pytest.fixture(scope="module")
def network() -> GroupViT:
    torch.manual_seed(0)
    found = GroupViT(build_groupvit_model(GROUPVIT)).eval()
    for layer in found.modules():
        if isinstance(layer, nn.BatchNorm1d):
            nn.init.normal_(layer.running_mean, std=0.01)
    return found


@pytest.fixture(scope="module")
def folder(network: GroupViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "groupvit"
    network.model.save_pretrained(path)
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(path)
    return path


def images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_segments_and_embeddings_are_those_of_transformers(network: GroupViT) -> None:
    normalised = (images(32) - network.mean) / network.std
    theirs = network.model.vision_model(normalised, output_attentions=True, return_dict=True)
    segments, stages = network.group(images(32))
    torch.testing.assert_close(segments, theirs.last_hidden_state)
    torch.testing.assert_close(stages, list(theirs.attentions))
    whole = network.model.visual_projection(theirs.pooler_output)
    torch.testing.assert_close(network.embed_segments(segments.mean(1)), whole)
    one = network.embed_segments(segments)[1, 2]
    torch.testing.assert_close(one, network.model.visual_projection(segments[1, 2:3])[0])


@torch.no_grad()
def test_larger_images_have_soft_assignments(network: GroupViT) -> None:
    segments, stages = network.group(images(64))
    assert segments.shape == (2, 3, 32)
    assert [stage.shape for stage in stages] == [(2, 6, 16), (2, 3, 6)]
    for stage in stages:
        torch.testing.assert_close(stage.sum(1), torch.ones_like(stage[:, 0]))
        assert ((stage > 0) & (stage < 1)).all()


@torch.no_grad()
def test_texts_do_not_depend_on_others(network: GroupViT) -> None:
    texts = ["a dog", "a photo of a cat on a very long bench.", ""]
    together = network.encode_text(texts, chunk=2)
    assert together.shape == (3, 16)
    torch.testing.assert_close(together, torch.cat([network.encode_text([text]) for text in texts]))
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_training_draws_assignments_and_keeps_batch_statistics(network: GroupViT) -> None:
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network.train()
    try:
        torch.manual_seed(0)
        drawn = [network.group(images(32))[0] for _ in range(2)]
        assert not torch.equal(*drawn)
        embeddings = torch.cat(
            [network.embed_segments(drawn[0]).flatten(0, 1), network.encode_text(["a dog"])]
        )
        embeddings.square().sum().backward()
    finally:
        network.eval()
    gradients = {n: p.grad for n, p in network.named_parameters() if not n.endswith("logit_scale")}
    assert all(gradient is not None for gradient in gradients.values())
    through = gradients["model.vision_model.encoder.stages.0.downsample.assign.q_proj.weight"]
    assert through.abs().max() > 0  # which the hard assignment alone would not have
    network.zero_grad()
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


@pytest.mark.parametrize("pickled", [False, True])
def test_folder_of_transformers_loads(network: GroupViT, folder: Path, tmp_path: Path, pickled: bool) -> None:
    if pickled:
        for path in folder.glob("*.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        torch.save(network.model.state_dict(), tmp_path / "pytorch_model.bin")
        folder = tmp_path
    found = load_groupvit(str(folder))
    assert found.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert found.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    own = network.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.model.state_dict().items())


def test_missing_weights_are_named(network: GroupViT, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"backbone\.weights=/nowhere.*nvidia/groupvit-gcc-yfcc"):
        GroupViTSettings("/nowhere").load()
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    state = network.model.state_dict()
    del state["visual_projection.3.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"visual_projection\.3\.weight"):
        load_groupvit(str(tmp_path))
