from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import tiny_models
import torch
from diffusers import DDPMScheduler, VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.errors import SettingError
from odise_pl.models.backbones.contract import Conditioning
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture, DiffusionModels
from odise_pl.models.backbones.timesteps import check_timesteps


@contextmanager
def inputs_of(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collects the inputs of modules in call order."""
    seen: list[Tensor] = []
    handles = [m.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for m in modules]
    yield seen
    for handle in handles:
        handle.remove()


def tapped(models: DiffusionModels) -> list[nn.Module]:
    """Residual blocks whose inputs are the features, in call order."""
    encoder = [block.resnets[1] for block in models.vae.encoder.down_blocks[-2:]]
    unet = [block.resnets[2] for block in models.unet.up_blocks]
    return [*encoder, *unet, *(models.vae.decoder.up_blocks[i].resnets[2] for i in (0, 1))]


def example(models: DiffusionModels | None = None, seed: int = 0, size: int = 128) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = (1 if models.classes is not None else 78 if models.pooled_text_encoder else 77) if models else 77
    width = models.unet.config.cross_attention_dim if models else 32
    images = torch.rand(2, 3, size, size, generator=generator)
    return images, torch.randn(2, tokens, width, generator=generator)


@torch.no_grad()
def reference_features(
    models: DiffusionModels, images: Tensor, context: Tensor, step: int, time_condition: Tensor, noise: bool
) -> list[Tensor]:
    """The features from complete forward passes of diffusers."""
    scheduler = DDPMScheduler(1000, *models.betas, "scaled_linear")
    vae, added = models.vae, None
    if models.pooled_text_encoder is not None:
        size = images.shape[-1]
        sizes = torch.tensor([[size, size, 0, 0, size, size]] * 2)
        added = {"text_embeds": context[:, -1, :64], "time_ids": sizes}
        context = context[:, :-1]
    with inputs_of(tapped(models)) as features:
        encoded = vae.encode(images * 2 - 1)
        latent = encoded.latents if isinstance(vae, VQModel) else encoded.latent_dist.mode()
        latent = latent * vae.config.scaling_factor
        shared = torch.randn(1, latent.shape[1], 64, 64, generator=torch.Generator().manual_seed(42))
        shared = F.interpolate(shared, latent.shape[-2:], mode="bicubic").expand_as(latent)
        noisy = scheduler.add_noise(latent, shared, torch.tensor([step])) if noise else latent
        handle = models.unet.time_embedding.register_forward_hook(lambda _, args, out: out + time_condition)
        models.unet(noisy, step, encoder_hidden_states=context, added_cond_kwargs=added)
        handle.remove()
        vae.decode(latent / vae.config.scaling_factor)
    return features


@pytest.mark.parametrize(
    ("architecture", "step", "size", "noise"),
    [
        (tiny_models.SD1, 0, 128, True),
        (tiny_models.SD2, 250, 192, True),
        (tiny_models.SD1, 261, 128, False),
        (tiny_models.LDM, 100, 96, True),
        (tiny_models.XL, 10, 96, True),
    ],
    ids=["sd1", "sd2", "clean", "ldm", "xl"],
)
def test_features_equal_inputs_of_residual_blocks_in_diffusers(
    architecture: DiffusionArchitecture, step: int, size: int, noise: bool
) -> None:
    models = tiny_models.diffusion(architecture)
    images, context = example(models, size=size)
    extra = torch.randn(2, 1, 128, generator=torch.Generator().manual_seed(3))
    backbone = LatentDiffusionFeatures(models, (step,), noise=noise)
    with torch.no_grad():
        features = backbone(images, Conditioning(context, extra))
    expected = reference_features(models, images, context, step, extra[:, 0], noise)
    assert len(features) == len(expected) == len(backbone.taps) == 4 + len(architecture.unet_channels)
    for feature, other, tap in zip(features, expected, backbone.taps, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(feature, other, rtol=0, atol=1e-4 * scale, msg=tap.name)
        assert feature.shape[1:] == (tap.channels, size // tap.stride, size // tap.stride), tap.name


def test_features_of_several_steps() -> None:
    models = tiny_models.diffusion()
    images, context = example()
    extra = torch.randn(2, 3, 128)
    together = LatentDiffusionFeatures(models, (0, 100, 200))
    with torch.no_grad():
        features = together(images, Conditioning(context, extra))
        for i, step in enumerate(together.timesteps):
            alone = LatentDiffusionFeatures(models, (step,))(
                images, Conditioning(context, extra[:, i : i + 1])
            )
            for a, b in zip(alone[2:6], features[2 + 4 * i : 6 + 4 * i], strict=True):
                torch.testing.assert_close(a, b)
    assert [tap.name for tap in together.taps[2:14:4]] == ["unet.t0.up.0", "unet.t100.up.0", "unet.t200.up.0"]
    assert not torch.allclose(features[2], features[6])


def test_nothing_runs_after_the_last_tap() -> None:
    models = tiny_models.diffusion()
    unet, decoder = models.unet, models.vae.decoder
    dead = [
        unet.up_blocks[3].resnets[2],
        unet.up_blocks[3].attentions[2],
        unet.conv_norm_out,
        unet.conv_out,
        decoder.up_blocks[1].resnets[2],
        *decoder.up_blocks[1].upsamplers,
        *decoder.up_blocks[2].resnets,
        *decoder.up_blocks[3].resnets,
        decoder.conv_norm_out,
        decoder.conv_out,
    ]
    alive = [unet.up_blocks[3].attentions[1], decoder.up_blocks[1].resnets[1]]
    images, context = example()
    with inputs_of(dead) as late, inputs_of(alive) as last:
        LatentDiffusionFeatures(models, (0,))(images, Conditioning(context))
    assert len(late) == 0
    assert len(last) == 2


def test_gradients_reach_only_the_conditioning() -> None:
    models = deepcopy(tiny_models.diffusion())
    for network in (models.unet, models.vae):
        network.requires_grad_(True)
    backbone = LatentDiffusionFeatures(models, (0, 10)).train()
    images, context = example()
    images.requires_grad_()
    context.requires_grad_()
    extra = torch.zeros(2, 2, 128, requires_grad=True)
    features = backbone(images, Conditioning(context, extra))
    assert [f.requires_grad for f in features] == [False] * 2 + [True] * 8 + [False] * 2
    sum(f.square().mean() for f in features).backward()
    assert context.grad is not None
    assert context.grad.abs().sum() > 0
    assert extra.grad is not None
    assert extra.grad.abs().amax(dim=(0, 2)).min() > 0
    assert images.grad is None
    assert [n for n, p in backbone.named_parameters() if p.grad is not None or p.requires_grad] == []


@pytest.mark.parametrize("architecture", [tiny_models.LDM, tiny_models.XL], ids=["ldm", "xl"])
def test_features_under_autocast(architecture: DiffusionArchitecture) -> None:
    """Codes of a quantised VAE are looked up in full precision."""
    models = tiny_models.diffusion(architecture)
    images, context = example(models, size=64)
    backbone = LatentDiffusionFeatures(models, (0,))
    lookups = [models.vae.quantize] if models.classes is not None else []
    with torch.no_grad(), inputs_of(lookups) as latents, torch.autocast("cpu", torch.bfloat16):
        features = backbone(images, Conditioning(context))
    assert all(feature.isfinite().all() for feature in features)
    assert [(latent.dtype, len(latent)) for latent in latents] == [(torch.float32, 1)] * 2 * len(lookups)


def test_gradients_reach_the_pooled_text() -> None:
    models = tiny_models.diffusion(tiny_models.XL)
    images, context = example(models, size=96)
    context.requires_grad_()
    features = LatentDiffusionFeatures(models, (0,))(images, Conditioning(context))
    sum(f.square().mean() for f in features).backward()
    assert context.grad is not None
    assert context.grad[:, :-1].abs().amax(dim=(1, 2)).min() > 0
    assert context.grad[:, -1, :64].abs().min() > 0
    assert not context.grad[:, -1, 64:].any()


def test_recomputed_activations_give_the_same_gradients() -> None:
    images, context = example()
    results = []
    for checkpoint in (False, True):
        backbone = LatentDiffusionFeatures(tiny_models.diffusion(tiny_models.SD2), (3,), checkpoint)
        words = context.clone().requires_grad_()
        extra = torch.zeros(2, 1, 128, requires_grad=True)
        features = backbone(images, Conditioning(words, extra))
        gradients = torch.autograd.grad(sum(f.square().mean() for f in features), [words, extra])
        results.append([*features, *gradients])
    for kept, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(kept, recomputed)


@pytest.mark.parametrize("steps", [(), (-1,), (1000,), (0, 0), (0.5,), "learned"])
def test_invalid_timesteps_are_named(steps: Any) -> None:
    assert check_timesteps("learnable") == (0,)
    with pytest.raises(SettingError, match=r"backbone\.timesteps="):
        check_timesteps(steps)
