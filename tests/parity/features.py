"""Windows and diffusion features of an evaluation case, from recorded windows, latents and conditioning."""

from __future__ import annotations

from dataclasses import astuple

import torch
from torch import Tensor

from tests.parity.checks import STAGE, Check, compare, equal_tensors, worst
from tests.parity.inputs import LDM, REC, Evaluation


def window_checks(run: Evaluation) -> list[Check]:
    """Windows, and what each is told about itself."""
    clip, captioner = run.model.clip, run.model.backbone.captioner
    seen = run.held(LDM + "forward/0/img")
    cuts = torch.tensor([astuple(window) for window in run.plan])
    places = run.case.facts.get("windows")
    checks = equal_tensors("places of windows", cuts, None if places is None else torch.tensor(places))
    checks += compare("window", run.windows[0], seen) + compare(
        "window for CLIP", run.windows[0], run.held(REC + "implicit_captioner.clip.embed_image/0/image")
    )
    embeds = run.case.numbered(REC + "implicit_captioner.clip.embed_image", "/image_embed")
    checks += worst(
        "CLIP image embedding",
        [(f"window {i}", clip.encode_image(run.windows[i]), embed) for i, embed in embeds.items()],
        STAGE,
    )
    contexts = run.case.numbered(LDM + "forward", "/cond_inputs")
    times = run.case.numbered(LDM + "forward", "/cond_emb")
    told = {i: captioner(run.windows[i]) for i in contexts.keys() | times.keys()}
    checks += worst("conditioning", [(f"window {i}", told[i].context, x) for i, x in contexts.items()], STAGE)
    return checks + worst(
        "time conditioning",
        [(f"window {i}", told[i].time, x) for i, x in times.items() if told[i].time is not None],
        STAGE,
    )


def feature_checks(run: Evaluation) -> list[Check]:
    """The diffusion model, from recorded windows, latents and conditioning."""
    features, case = run.model.backbone.features, run.case
    latents = case.numbered(LDM + "encode_to_latent", "/latent")
    own = {i: features.encode(_window(run, i)) for i in latents}
    checks = worst("latent", [(f"window {i}", own[i][0], x) for i, x in latents.items()], STAGE)
    steps = features.timesteps
    noisy = case.numbered(LDM + "unet_forward", "/noisy_latent")
    checks += worst(
        "noisy latent",
        [
            (
                f"step {steps[k % len(steps)]}",
                features.add_noise(latents[k // len(steps)], steps[k % len(steps)]),
                x,
            )
            for k, x in noisy.items()
            if k // len(steps) in latents
        ],
        STAGE,
    )
    recorded = case.numbered(LDM + "forward/0/features")
    if not recorded or 0 not in latents:
        return checks
    found = [*own[0][1], *_unet(run, noisy, latents[0]), *features.decoder_features(latents[0])]
    names = [tap.name for tap in features.taps]
    return checks + worst(
        "features (recorded latent)", [(names[i], found[i], x) for i, x in recorded.items()], STAGE
    )


def _window(run: Evaluation, index: int) -> Tensor:
    recorded = run.held(f"{LDM}forward/{index}/img")
    return run.windows[index] if recorded is None else recorded


def _unet(run: Evaluation, noisy: dict[int, Tensor], latent: Tensor) -> list[Tensor]:
    """UNet features of the first window at every step."""
    features, found = run.model.backbone.features, []
    for k, step in enumerate(features.timesteps):
        context, extra = (run.held(f"{LDM}unet_forward/{k}/{name}") for name in ("context", "cond_emb"))
        if context is None:
            told = run.model.backbone.captioner(_window(run, 0))
            context, extra = told.context, None if told.time is None else told.time[:, k]
        start = noisy[k] if k in noisy else features.add_noise(latent, step)
        found += features.unet_features(start, step, context, extra)
    return found
