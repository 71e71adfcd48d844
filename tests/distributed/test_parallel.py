"""Strategies: the same numbers on one device and on two, replicated or sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import parallel_cases
import pytest
import ranks
import tiny_models
import torch
from ldm_names import original_tensors
from torch import multiprocessing

from odise_pl.distributed.sharding import place
from odise_pl.models.backbones.stable_diffusion import build_diffusion

OFTEN = ("caption", "uneven", "timm", "shared CLIP")  # the other cases are slow
CASES = [pytest.param(c, marks=[] if c in OFTEN else pytest.mark.slow) for c in parallel_cases.CASES]
FAMILIES = ["vit", "eva", "beit", "swin", "swinv2", "convnext", "mvit"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The results of two processes, with either strategy."""
    folder = tmp_path_factory.mktemp("two")
    cases = tuple(parallel_cases.CASES) if pytestconfig.getoption("--slow") else OFTEN
    # forked, because importing torch and lightning again is slow
    arguments = (ranks.free_port(), folder, cases)
    multiprocessing.start_processes(parallel_cases.run_rank, arguments, nprocs=2, start_method="fork")
    return folder


def load(folder: Path, strategy: str, case: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{strategy} {case} {rank}.pt", weights_only=True) for rank in (0, 1)]


def test_both_strategies_equal_one_device_with_the_joined_batch(two: Path) -> None:
    one = parallel_cases.fit("caption")
    start = dict(parallel_cases.module("caption").named_parameters())
    moved = [(value - start[name].detach()).abs().max() for name, value in one["weights"].items()]
    # but for some biases, on which nothing depends
    assert sum(float(m) > 5e-6 for m in moved) > 0.9 * len(moved)
    for strategy in ("ddp", "fsdp"):
        first, second = load(two, strategy, "caption")
        losses = (first["losses"] + second["losses"]) / 2
        torch.testing.assert_close(losses, one["losses"], rtol=1e-5, atol=0)
        for name, value in one["weights"].items():
            assert torch.equal(first["weights"][name], second["weights"][name])
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_sharded_equals_replicated(two: Path, case: str) -> None:
    """In training, and in predictions of one rank while the other has no image."""
    for replicated, sharded in zip(load(two, "ddp", case), load(two, "fsdp", case), strict=True):
        assert torch.equal(replicated["losses"], sharded["losses"])
        torch.testing.assert_close(sharded["predicted"], replicated["predicted"], rtol=1e-9, atol=1e-12)
        for name, value in replicated["weights"].items():
            torch.testing.assert_close(sharded["weights"][name], value, rtol=1e-9, atol=1e-12)


def test_image_networks_are_sharded(two: Path) -> None:
    """All but what lies outside of blocks: under a tenth. Text encoders are whole."""
    model = parallel_cases.module("caption")
    image = ("unet", "vae", "clip.model.visual")
    sizes = [
        sum(model.get_parameter(name).numel() for name in load(two, strategy, "caption")[0]["whole"]
            if any(f".{part}." in name for part in image))
        for strategy in ("fsdp", "ddp")
    ]  # fmt: skip
    assert 0 < sizes[0] < 0.1 * sizes[1]
    for strategy, kept in (("fsdp", False), ("ddp", True)):
        names = load(two, strategy, "timm")[0]["whole"]
        assert any(".features.model.layers.3.blocks.0.mlp.fc1.weight" in name for name in names) == kept


@pytest.mark.parametrize("family", [pytest.param("", marks=pytest.mark.slow), *FAMILIES])
def test_rounded_weights_change_no_result(family: str) -> None:
    """Of a diffusion model, and of every family of timm's networks."""
    model = tiny_models.odise(family=family)
    tiny_models.stir(model)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    words = model.encode_classes([("dog",), ("grass",)])
    classes = model.prepare(tiny_models.vocabulary(("dog",), ("grass",)), None)

    def results() -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(images, words)
            outputs[-1].mask_logits.square().mean().backward()
            predicted = model.predict(images, [(64, 64)], [(64, 64)], classes)
        gradients = [p.grad for p in model.backbone.parameters() if p.grad is not None]
        assert len(gradients) > 10
        segments = [one.panoptic.ids for one in predicted]
        return [outputs[-1].mask_logits, outputs[-1].class_logits, *gradients, *segments]

    def frozen_bytes() -> int:
        return sum(p.nbytes for p in model.backbone.features.parameters())

    before, size = results(), frozen_bytes()
    place(model, torch.bfloat16)
    for one, other in zip(before, results(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(model.encode_classes([("dog",), ("grass",)]).embeddings, words.embeddings)
    assert frozen_bytes() < 0.7 * size
    place(model, torch.bfloat16)  # again: nothing to do


def test_trained_networks_stay_in_full_precision() -> None:
    model = tiny_models.odise(family="resnet", trained=True)
    place(model, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.clip.model.visual.conv1.weight.dtype == torch.bfloat16


def test_mapped_weights_take_memory_when_they_are_placed(tmp_path: Path) -> None:
    models = build_diffusion(tiny_models.SD1)
    torch.save({"state_dict": original_tensors(models)}, tmp_path / "sd.ckpt")
    expected = models.unet.mid_block.resnets[0].conv1.weight.clone()
    model = tiny_models.odise(weights=str(tmp_path / "sd.ckpt"), mapped=True)
    features = model.backbone.features
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith("sd.ckpt")]

    def in_file() -> list[bool]:
        weights = [*features.unet.parameters(), *features.vae.parameters()]
        places = [(int(start, 16), int(stop, 16)) for start, stop in ranges]
        return [any(start <= p.data_ptr() < stop for start, stop in places) for p in weights]

    assert all(in_file())
    place(model)
    assert not any(in_file())
    assert torch.equal(features.unet.mid_block.resnets[0].conv1.weight, expected)
