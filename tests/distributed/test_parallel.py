"""Strategies: the same numbers on one device and on two, replicated or sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parallel_cases
import pytest
import ranks
import tiny_models
import torch
from ldm_names import unet_tensors, vae_tensors

from odise_pl.distributed.sharding import place
from odise_pl.models.backbones.stable_diffusion import build_diffusion
from odise_pl.models.odise import Odise


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes found, with either strategy."""
    folder = tmp_path_factory.mktemp("two")
    ranks.run(ranks.torchrun, 1, 2, [parallel_cases.__file__, str(folder)])
    return folder


def load(folder: Path, strategy: str, case: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{strategy} {case} {rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("case", ["label", "caption", "recomputed", "heuristic"])
def test_sharded_as_replicated_as_one_device_with_the_joined_batch(two: Path, case: str) -> None:
    one = parallel_cases.fit(case)
    start = dict(parallel_cases.module(case).named_parameters())
    moved = [(value - start[name].detach()).abs().max() for name, value in one["weights"].items()]
    # but for some biases, on which nothing depends
    assert sum(float(m) > 5e-5 for m in moved) > 0.95 * len(moved)
    for strategy in ("ddp", "fsdp"):
        first, second = load(two, strategy, case)
        losses = (first["losses"] + second["losses"]) / 2
        torch.testing.assert_close(losses, one["losses"], rtol=1e-5, atol=0)
        for name, value in one["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name])
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", ["accumulated", "uneven"])
def test_sharded_as_replicated(two: Path, case: str) -> None:
    for rank in (0, 1):
        replicated, sharded = load(two, "ddp", case)[rank], load(two, "fsdp", case)[rank]
        assert torch.equal(replicated["losses"], sharded["losses"])
        for name, value in replicated["weights"].items():
            torch.testing.assert_close(sharded["weights"][name], value, rtol=1e-9, atol=1e-12)


def test_what_is_sharded(two: Path) -> None:
    """Of the frozen networks only what lies outside of all blocks is whole on a rank: under a hundredth."""
    sharded, replicated = load(two, "fsdp", "label")[0]["whole"], load(two, "ddp", "label")[0]["whole"]
    assert set(sharded) < set(replicated)
    model = parallel_cases.module("label")
    small = sum(model.get_parameter(name).numel() for name in sharded)
    assert small < 0.1 * sum(model.get_parameter(name).numel() for name in replicated)


def test_weights_are_kept_as_autocast_rounds_them() -> None:
    """In half the memory, and no result changes."""
    model = tiny_models.odise()
    tiny_models.stir(model)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    words = model.encode_classes([("dog",), ("grass",)])
    classes = model.prepare(tiny_models.vocabulary(("dog",), ("grass",)), None)

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images, words)
            outputs[-1].mask_logits.square().mean().backward()
            predicted = model.predict(images, [(64, 64)] * 2, [(64, 64)] * 2, classes)
        gradient = model.backbone.captioner.alpha_cond.grad
        assert gradient is not None
        segments = [one.panoptic.ids for one in predicted]
        return [outputs[-1].mask_logits, outputs[-1].class_logits, gradient, *segments]

    before = results()
    size = frozen_bytes(model)
    place(model, torch.bfloat16)
    for one, other in zip(before, results(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(model.encode_classes([("dog",), ("grass",)]).embeddings, words.embeddings)
    rounded = model.backbone.features.unet.mid_block.resnets[0].conv1
    assert rounded.weight.dtype == torch.bfloat16
    assert frozen_bytes(model) < 0.7 * size  # the text encoder is as it was
    place(model, torch.bfloat16)  # again: nothing to do


def frozen_bytes(model: Odise) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)


def test_weights_take_no_memory_until_they_are_placed(tmp_path: Path) -> None:
    """Each process holds what it keeps of a file, however many there are on a machine."""
    models = build_diffusion(tiny_models.SD1)
    networks = unet_tensors(models.unet) | vae_tensors(models.vae)
    text = {n.removeprefix("text_model."): t for n, t in models.text_encoder.state_dict().items()}
    named = {f"cond_stage_model.transformer.text_model.{n}": t for n, t in text.items()}
    torch.save({"state_dict": networks | named}, tmp_path / "sd.ckpt")
    expected = models.unet.mid_block.resnets[0].conv1.weight.clone()
    model = tiny_models.odise(weights=str(tmp_path / "sd.ckpt"), mapped=True)
    features = model.backbone.features
    weights = [*features.unet.parameters(), *features.vae.parameters()]
    in_file = mapped(tmp_path / "sd.ckpt")
    assert all(any(start <= p.data_ptr() < stop for start, stop in in_file) for p in weights)
    place(model)
    assert not any(start <= p.data_ptr() < stop for p in weights for start, stop in in_file)
    assert torch.equal(features.unet.mid_block.resnets[0].conv1.weight, expected)


def mapped(path: Path) -> list[tuple[int, int]]:
    """Where a file lies in the addresses of this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    return [(int(start, 16), int(stop, 16)) for start, stop in ranges]
