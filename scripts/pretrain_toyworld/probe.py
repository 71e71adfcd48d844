"""What frozen features tell about patches of held-out pictures, by the best linear map."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from odise_pl.models.backbones.contract import Conditioning, ConditioningSpec, Features
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.toyworld.make import KINDS
from odise_pl.toyworld.scene import Scene
from odise_pl.toyworld.things import THINGS
from scripts.pretrain_toyworld.corpus import SIDE
from scripts.pretrain_toyworld.grade import scenes, square

_SEEDS = (4321, 1234)  # of the pictures of fit and grade
_CELLS = 16  # patches on each side of a picture
_LEAST = 0.5  # share of a patch that its category covers
_RIDGE = 1e-3


@torch.no_grad()
def probe(settings: FeatureSettings, count: int) -> tuple[float, float]:
    """Shares of patches of 8 pixels on things, and on stuff, whose category least squares names.

    All categories count the same.

    Args:
        settings: of the backbone, whose taps are joined; diffusion models are conditioned on the empty text.
        count: pictures to fit the map, and as many others to grade it.
    """
    features, condition = settings.load()
    (x, y), (held_x, held_y) = (_patches(features.eval(), condition, count, seed) for seed in _SEEDS)
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, held_x = (F.pad((part - mean) / std, (0, 1), value=1.0) for part in (x, held_x))
    truth = F.one_hot(y, len(KINDS)).float()
    weighted = x.T / truth.sum(0)[y]
    gram = weighted @ x + _RIDGE * len(KINDS) * torch.eye(x.shape[1])
    found = (held_x @ torch.linalg.solve(gram, weighted @ truth)).argmax(1)
    shares = {int(kind): float((found[held_y == kind] == kind).float().mean()) for kind in held_y.unique()}
    things, stuff = ([shares[n] for n in shares if (n < len(THINGS)) is thing] for thing in (True, False))
    return fmean(things), fmean(stuff)  # things come first in KINDS


def _patches(
    features: Features, condition: ConditioningSpec | None, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Features [N, channels of all taps] and categories [N] of the patches that mostly show one."""
    conditioning = None if condition is None else Conditioning(condition.uncond)
    found: list[tuple[Tensor, Tensor]] = []
    for scene in scenes(count, seed):
        maps = features(square(scene), conditioning)
        joined = torch.cat([F.adaptive_avg_pool2d(one[0], _CELLS) for one in maps]).flatten(1).T
        share, kind = F.adaptive_avg_pool2d(_kinds(scene), _CELLS).flatten(1).max(0)
        found.append((joined[share > _LEAST], kind[share > _LEAST]))
    vectors, kinds = zip(*found, strict=True)
    return torch.cat(vectors), torch.cat(kinds)


def _kinds(scene: Scene) -> Tensor:
    """Where each category is: [kinds, SIDE, SIDE]."""
    ids = scene.ids[:SIDE, :SIDE]
    named = [(placed.id, placed.thing) for placed in scene.things] + list(scene.stuff)
    return torch.from_numpy(
        np.stack([np.isin(ids, [id for id, one in named if one == kind]) for kind in KINDS])
    ).float()
