"""An evaluation case with its network: windows, conditioning and diffusion features."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property

import torch
from torch import Tensor

from odise_pl.models.backbones.captioners import Captioner
from odise_pl.models.backbones.latent_diffusion import LatentDiffusionFeatures
from odise_pl.models.backbones.sliding_window import Window, cut_windows, plan_windows
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.odise import Odise, pad_images
from odise_pl.structures import Size
from tests.parity.checks import Check, compare, compare_maps, worst
from tests.parity.models import vocabulary
from tests.parity.records import Case

LDM = "rec/ldm_extractor."
EMBED = "rec/implicit_captioner.clip.embed_image"


@dataclass
class Evaluation:
    """A case, its network and prepared inputs."""

    case: Case
    model: Odise

    def held(self, name: str) -> Tensor | None:
        """A recorded tensor, or None."""
        return self.case.tensors.get(f"rec/{name}")

    @property
    def features(self) -> LatentDiffusionFeatures:
        assert isinstance(self.model.backbone.features, LatentDiffusionFeatures)
        return self.model.backbone.features

    @property
    def captioner(self) -> Captioner:
        assert isinstance(self.model.backbone.captioner, Captioner)
        return self.model.backbone.captioner

    @cached_property
    def canvas(self) -> tuple[Tensor, list[Size]]:
        return pad_images(self.case.images())

    @cached_property
    def plan(self) -> list[Window]:
        height, width = self.canvas[0].shape[-2:]
        return plan_windows(height, width, self.model.backbone.window)

    @cached_property
    def windows(self) -> list[Tensor]:
        """Windows at the diffusion model's input size: [B, 3, S, S] each."""
        cuts = cut_windows(self.canvas[0], self.plan, self.model.backbone.input_size)
        return list(cuts.chunk(len(self.plan)))

    @cached_property
    def classes(self) -> InferenceClasses:
        facts = self.case.facts
        train = facts.get("train_labels")
        test = vocabulary(self.case.fact("test_labels"), facts.get("thing_ids") or [])
        return self.model.prepare(test, vocabulary(train) if train else None)

    def output_size(self, index: int) -> Size:
        facts, valid = self.case.facts, self.canvas[1][index]
        place = f"inputs/{index}"
        return int(facts.get(f"{place}/height", valid[0])), int(facts.get(f"{place}/width", valid[1]))


def window_checks(run: Evaluation) -> list[Check]:
    """Positions and pixels of windows, and their conditioning."""
    clip, captioner, numbered = run.model.clip, run.captioner, run.case.numbered
    cuts, places = torch.tensor([astuple(window) for window in run.plan]), run.case.facts.get("windows")
    embeds = numbered(EMBED, "/image_embed")
    contexts, times = numbered(LDM + "forward", "/cond_inputs"), numbered(LDM + "forward", "/cond_emb")
    conditions = {i: captioner(run.windows[i]) for i in contexts.keys() | times.keys()}
    return [
        *compare_maps("places of windows", cuts, None if places is None else torch.tensor(places)),
        *compare("window", run.windows[0], run.case.tensors.get(LDM + "forward/0/img")),
        *compare("window for CLIP", run.windows[0], run.case.tensors.get(EMBED + "/0/image")),
        *worst(
            "CLIP image embedding",
            [(f"window {i}", clip.encode_image(run.windows[i]), x) for i, x in embeds.items()],
        ),
        *worst("conditioning", [(f"window {i}", conditions[i].context, x) for i, x in contexts.items()]),
        *worst(
            "time conditioning",
            [(f"window {i}", t, x) for i, x in times.items() if (t := conditions[i].time) is not None],
        ),
    ]


def feature_checks(run: Evaluation) -> list[Check]:
    """Features of the diffusion model from recorded windows, latents and conditioning."""
    features, case = run.features, run.case
    steps = features.timesteps
    latents = case.numbered(LDM + "encode_to_latent", "/latent")
    encoded = {i: features.encode(_window(run, i)) for i in latents}
    noisy = case.numbered(LDM + "unet_forward", "/noisy_latent")
    # recorded window by window, step by step
    starts = {k: (latents.get(k // len(steps)), steps[k % len(steps)]) for k in noisy}
    checks = [
        *worst("latent", [(f"window {i}", encoded[i][0], x) for i, x in latents.items()]),
        *worst(
            "noisy latent",
            [
                (f"step {step}", features.add_noise(latent, step), noisy[k])
                for k, (latent, step) in starts.items()
                if latent is not None
            ],
        ),
    ]
    recorded = case.numbered(LDM + "forward/0/features")
    if not recorded or 0 not in latents:
        return checks
    found = [*encoded[0][1], *_unet(run, noisy, latents[0]), *features.decoder_features(latents[0])]
    pairs = [(features.taps[i].name, found[i], x) for i, x in recorded.items()]
    return checks + worst("features (recorded latent)", pairs)


def _window(run: Evaluation, index: int) -> Tensor:
    return run.case.tensors.get(f"{LDM}forward/{index}/img", run.windows[index])


def _unet(run: Evaluation, noisy: dict[int, Tensor], latent: Tensor) -> list[Tensor]:
    """UNet features of the first window at every step."""
    features, held, found = run.features, run.case.tensors, []
    own = run.captioner(_window(run, 0))
    for k, step in enumerate(features.timesteps):
        context = held.get(f"{LDM}unet_forward/{k}/context", own.context)
        extra = held.get(f"{LDM}unet_forward/{k}/cond_emb", None if own.time is None else own.time[:, k])
        start = noisy[k] if k in noisy else features.add_noise(latent, step)
        found += features.unet_features(start, step, context, extra)
    return found
