"""Features of a frozen latent diffusion model (section 3.2 of the paper).

Each feature ("tap") is the input of a residual block. The forward passes call the diffusers modules one by
one and stop at the last tap; the rest of the UNet and the expensive half of the VAE decoder do not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import VQModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from odise_pl.models.backbones.contract import Conditioning, Features, Tap
from odise_pl.models.backbones.stable_diffusion import DiffusionModels
from odise_pl.models.backbones.timesteps import STEPS, check_timesteps
from odise_pl.models.frozen import outermost
from odise_pl.models.ops.winograd import use_winograd

NOISE_SEED = 42
_BLOCKS = (ResnetBlock2D, Transformer2DModel, Attention, Downsample2D, Upsample2D)


def noise_schedule(first: float = 0.00085, last: float = 0.012, steps: int = STEPS) -> Tensor:
    """Cumulative product of alphas of the ``scaled_linear`` schedule: float64 [steps]."""
    betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def fixed_noise(channels: int = 4) -> Tensor:
    """The noise of every image: float32 [1, channels, 64, 64]."""
    return torch.randn(1, channels, 64, 64, generator=torch.Generator().manual_seed(NOISE_SEED))


class LatentDiffusionFeatures(Features):
    """Feature maps of images and conditioning; all weights are frozen.

    Gradients flow through the UNet to the conditioning; the VAE runs without gradients.

    Args:
        models: the frozen networks; text encoders are not kept.
        timesteps: diffusion steps of the UNet's features, see
            :func:`~odise_pl.models.backbones.timesteps.check_timesteps`; a learned step of the models
            replaces them.
        checkpoint_activations: recompute UNet blocks in the backward pass.
        noise: add each step's noise to the latent; else the latent is clean, and only the time embedding is
            of the step.
    """

    alphas_cumprod: Tensor
    noise: Tensor
    unet: Any  # diffusers' modules declare no attributes
    vae: Any

    def __init__(
        self,
        models: DiffusionModels,
        timesteps: Sequence[int] | str = (0,),
        checkpoint_activations: bool = False,
        noise: bool = True,
    ) -> None:
        super().__init__()
        self.timesteps: tuple[float, ...] = check_timesteps(timesteps)
        if models.learned_step is not None:
            self.timesteps = (models.learned_step,)
        self.unet, self.vae = models.unet, models.vae
        self.checkpoint_activations, self.noisy = checkpoint_activations, noise
        self.latent_scale: float = self.vae.config.scaling_factor
        first, last = models.betas
        self.register_buffer("alphas_cumprod", noise_schedule(first, last), persistent=False)
        self.register_buffer("noise", fixed_noise(self.vae.config.latent_channels), persistent=False)
        use_winograd(self)
        self.freeze()

    @property
    def taps(self) -> list[Tap]:
        """The features of :meth:`forward` in order: VAE encoder, UNet at each step, VAE decoder."""
        stride = self._vae_stride
        vae, unet = self.vae.config.block_out_channels, self.unet.up_blocks
        last = len(vae) - 1
        encoder = [
            Tap(f"encoder.{last - 1}", vae[-2], stride // 2),
            Tap(f"encoder.{last}", vae[-1], stride),
        ]
        up = [
            Tap(f"unet.t{t:.0f}.up.{i}", block.resnets[-1].in_channels, stride << (len(unet) - 1 - i))
            for t in self.timesteps
            for i, block in enumerate(unet)
        ]
        decoder = [Tap("decoder.0", vae[-1], stride), Tap("decoder.1", vae[-2], stride // 2)]
        return encoder + up + decoder

    @property
    def input_multiple(self) -> int:
        """Required divisor of input sides: VAE and UNet halve them at each level."""
        return self._vae_stride << (len(self.unet.config.block_out_channels) - 1)

    @property
    def _vae_stride(self) -> int:
        return 1 << (len(self.vae.config.block_out_channels) - 1)

    def blocks(self) -> Iterator[nn.Module]:
        """Blocks of UNet and VAE."""
        return outermost([self.unet, self.vae], _BLOCKS)

    def forward(self, images: Tensor, conditioning: Conditioning | None = None) -> list[Tensor]:
        """Features of all taps, [N, tap.channels, S / tap.stride, S / tap.stride] each.

        Args:
            images: [N, 3, S, S] in 0..1, S a multiple of :attr:`input_multiple`.
            conditioning: required.
        """
        assert conditioning is not None
        with torch.no_grad():
            latent, encoder = self.encode(images)
            decoder = self.decoder_features(latent)
        unet: list[Tensor] = []
        for i, t in enumerate(self.timesteps):
            extra = None if conditioning.time is None else conditioning.time[:, i]
            noisy = self.add_noise(latent, t) if self.noisy else latent
            unet += self.unet_features(noisy, t, conditioning.context, extra)
        return encoder + unet + decoder

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scaled latent (posterior mean) [N, latent_channels, S/8, S/8], and the encoder's two features."""
        encoder, features = self.vae.encoder, []
        first = len(encoder.down_blocks) - 2
        x = encoder.conv_in((images - 0.5) / 0.5)
        for level, block in enumerate(encoder.down_blocks):
            for i, resnet in enumerate(block.resnets):
                if level >= first and i == 1:
                    features.append(x)
                x = resnet(x, None)
            for down in block.downsamplers or ():
                x = down(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        mean = self.vae.quant_conv(x)[:, : self.vae.config.latent_channels]  # the rest is the variance
        # attention returns a channels-last layout, in which GroupNorm on CPUs is ten times less accurate
        return (mean * self.latent_scale).contiguous(), features

    def add_noise(self, latent: Tensor, timestep: float) -> Tensor:
        """The forward process q(x_t | x_0) with the fixed noise, resized (bicubic) when sizes differ."""
        noise = self.noise
        if noise.shape[-2:] != latent.shape[-2:]:
            noise = F.interpolate(noise, latent.shape[-2:], mode="bicubic", align_corners=False)
        alpha = self.alphas_cumprod[round(timestep)]
        kept, added = (share.sqrt().to(latent.dtype) for share in (alpha, 1 - alpha))
        return kept * latent + added * noise.to(latent.dtype)

    def decoder_features(self, latent: Tensor) -> list[Tensor]:
        """Inputs of the third residual block of the decoder's first two stages, from the clean latent."""
        decoder = self.vae.decoder
        x = latent / self.latent_scale
        if isinstance(self.vae, VQModel):  # image by image: distances to all codes are 0.5 GB at 512 pixels
            x = x.to(self.vae.quantize.embedding.weight.dtype)
            x = torch.cat([self.vae.quantize(one)[0] for one in x.split(1)])
        x = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(x)))
        first, second = decoder.up_blocks[:2]
        for resnet in first.resnets[:2]:
            x = resnet(x, None)
        features = [x]
        x = first.resnets[2](x, None)
        for up in first.upsamplers:
            x = up(x)
        for resnet in second.resnets[:2]:
            x = resnet(x, None)
        return [*features, x]

    def unet_features(
        self, latent: Tensor, timestep: float, context: Tensor, time_condition: Tensor | None
    ) -> list[Tensor]:
        """Inputs (with skip connection) of the third residual block of every up stage."""
        unet = self.unet
        embedding = unet.time_embedding(unet.get_time_embed(sample=latent, timestep=timestep))
        if unet.config.addition_embed_type is not None:
            height, width = (side * self._vae_stride for side in latent.shape[-2:])
            added, context = self._pooled_text(embedding, context, height, width)
            embedding = embedding + added
        if time_condition is not None:
            embedding = embedding + time_condition
        x, skips = self._unet_down(latent, embedding, context)
        x = self._recomputed(unet.mid_block, x, embedding, context)
        features = []
        for stage, block in enumerate(unet.up_blocks):
            for i, resnet in enumerate(block.resnets):
                x = torch.cat([x, skips.pop()], dim=1)
                if i == len(block.resnets) - 1:
                    features.append(x)
                    if stage == len(unet.up_blocks) - 1:
                        return features
                x = self._block(block, i, resnet, x, embedding, context)
            for up in block.upsamplers or ():
                x = up(x, skips[-1].shape[-2:])
        raise AssertionError("unreachable: the last stage returns at its tap")

    def _pooled_text(
        self, embedding: Tensor, context: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """SDXL's share of the time embedding, of the pooled text and sizes; and the context without it."""
        config = self.unet.config
        channels = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        # sizes of the original image, corner of the crop, size of the crop: an input is a whole image
        sizes = embedding.new_tensor([height, width, 0, 0, height, width]).repeat(len(context), 1)
        added = {"text_embeds": context[:, -1, :channels], "time_ids": sizes}
        words = context[:, :-1]
        return self.unet.get_aug_embed(embedding, words, added), words

    def _unet_down(self, latent: Tensor, embedding: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.unet.conv_in(latent)
        skips = [x]
        for block in self.unet.down_blocks:
            for i, resnet in enumerate(block.resnets):
                x = self._block(block, i, resnet, x, embedding, context)
                skips.append(x)
            for down in block.downsamplers or ():
                x = down(x)
                skips.append(x)
        return x, skips

    def _block(
        self, block: Any, i: int, resnet: nn.Module, x: Tensor, embedding: Tensor, context: Tensor
    ) -> Tensor:
        x = self._recomputed(resnet, x, embedding)
        if getattr(block, "has_cross_attention", False):
            (x,) = self._recomputed(partial(block.attentions[i], return_dict=False), x, context)
        return x

    def _recomputed(self, function: Callable[..., Any], *tensors: Tensor) -> Any:
        if self.checkpoint_activations and torch.is_grad_enabled():
            return checkpoint(function, *tensors, use_reentrant=False)
        return function(*tensors)
