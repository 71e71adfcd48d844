"""Pre-training of small networks of timm: a member of each family in the paper's table of representations.

The loss sees labels of all categories in a picture, or pictures alone. The networks and their sizes are those
of ``conf/backbone/toy_*.yaml``; heads and decoders are dropped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.v2.functional import normalize

from odise_pl.models.backbones.timm_features import TimmSettings
from odise_pl.toyworld.make import KINDS
from odise_pl.toyworld.scene import pick
from scripts.pretrain_toyworld.clip import ChosenPatches
from scripts.pretrain_toyworld.clip_batches import PATCHES, WHOLE, patches_of
from scripts.pretrain_toyworld.corpus import SIDE, Corpus, Pixels, enlarge, halve, paint_corpus
from scripts.pretrain_toyworld.networks import MEMBERS, backbone
from scripts.pretrain_toyworld.training import Batch, Recipe, in_two_sizes, pixels, save_half, train

PASSES = 160_000
_PICTURES = 24_000
_SHOWN = (0.2, 1.0)  # share of a picture that a masked view shows
_GLOBAL, _LOCAL = (0.4, 1.0), (0.05, 0.4)  # the same of DINO's large and small views
_GLOBAL_VIEWS, _LOCAL_VIEWS = 2, 4  # per picture; the local ones have half the side
_GAIN = (0.6, 1.4)  # of each colour in a view of DINO
_DECODER = 64  # width of the decoder of masked patches
_PROTOTYPES, _BOTTLENECK, _HIDDEN = 256, 64, 256
_MOMENTUM = 0.99  # of DINO's teacher
_TAU_TEACHER, _TAU_STUDENT = 0.04, 0.1  # temperatures
_BALANCING = 3  # iterations


def labels_batch(pictures: Corpus, size: int, random: np.random.Generator, number: int) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, and which categories are ``present`` [size, kinds].

    Half of the pictures are mirrored. The number of the batch is ignored.
    """
    chosen = [pick(pictures, random) for _ in range(size)]
    present = torch.zeros(size, len(KINDS))
    for row, picture in zip(present, chosen, strict=True):
        row[list(picture.kinds)] = 1
    return {"images": pixels([_mirrored(one.image, random) for one in chosen]), "present": present}


def masked_batch(pictures: Corpus, size: int, random: np.random.Generator, number: int) -> Batch:
    """``images`` [size, 3, SIDE, SIDE] in 0..1, and the numbers of their visible ``patches``, a quarter.

    The number of the batch is ignored.
    """
    images = [_view(pick(pictures, random).image, _SHOWN, random) for _ in range(size)]
    patches = [random.permutation(patches_of(WHOLE))[:PATCHES] for _ in range(size)]
    return {"images": pixels(images), "patches": torch.from_numpy(np.stack(patches))}


def views_batch(pictures: Corpus, size: int, random: np.random.Generator, number: int) -> Batch:
    """DINO's views of ``size`` pictures, in 0..1: all first views, then all second ones, and so on.

    ``images`` are large [2 * size, 3, SIDE, SIDE], ``parts`` small [4 * size, 3, SIDE / 2, SIDE / 2]. The
    number of the batch is ignored.
    """
    chosen = [pick(pictures, random).image for _ in range(size)]
    large = [_view(image, _GLOBAL, random) for _ in range(_GLOBAL_VIEWS) for image in chosen]
    small = [_view(image, _LOCAL, random) for _ in range(_LOCAL_VIEWS) for image in chosen]
    halves = [halve(view) for view in small]
    return {"images": _tinted(pixels(large), random), "parts": _tinted(pixels(halves), random)}


def _view(image: Pixels, shown: tuple[float, float], random: np.random.Generator) -> Pixels:
    """A random square of a picture, enlarged; it shows a share of the area within the limits."""
    side = round(SIDE * random.uniform(*shown) ** 0.5)
    left, top = (int(random.integers(SIDE - side + 1)) for _ in "xy")
    return _mirrored(enlarge(image, (left, top, left + side, top + side)), random)


def _mirrored(image: Pixels, random: np.random.Generator) -> Pixels:
    return image[:, ::-1] if random.random() < 0.5 else image


def _tinted(images: Tensor, random: np.random.Generator) -> Tensor:
    """Each image [N, 3, H, W] in light of another colour, so that colours do not tell views of a picture."""
    return (images * torch.from_numpy(random.uniform(*_GAIN, (len(images), 3, 1, 1))).float()).clamp(0, 1)


class Member(nn.Module):
    """A network of timm without a classifier, for images [N, 3, H, W] in 0..1."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = (list(network.pretrained_cfg[name]) for name in ("mean", "std"))

    def forward(self, images: Tensor) -> Tensor:
        """One vector per image: [N, features]."""
        vectors: Tensor = self.network(normalize(images, self.mean, self.std))
        return vectors

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens of a transformer after its final norm, the class token first: [N, 1 + patches, D]."""
        tokens: Tensor = self.network.forward_features(normalize(images, self.mean, self.std))
        return tokens


class Labels(nn.Module):
    """Whether each category is in a picture: binary cross-entropy."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.member, self.classes = Member(network), nn.Linear(network.num_features, len(KINDS))

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a :func:`labels_batch`."""
        logits = self.classes(self.member(batch["images"]))
        return F.binary_cross_entropy_with_logits(logits, batch["present"])


class MaskedPixels(nn.Module):
    """Masked autoencoding (arXiv 2111.06377): squared error of the pixels of the hidden patches.

    The target is not normalised per patch: noise in flat regions would dominate it.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.member, self.chosen = Member(network), ChosenPatches()
        network.patch_drop = self.chosen
        patches, (self.side, _) = network.patch_embed.num_patches, network.patch_embed.patch_size
        self.embed = nn.Linear(network.embed_dim, _DECODER)
        self.hidden = nn.Parameter(torch.zeros(1, 1, _DECODER))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + patches, _DECODER))
        self.decoder = nn.Sequential(*(Block(_DECODER, num_heads=2) for _ in range(2)))
        self.predict = nn.Sequential(nn.LayerNorm(_DECODER), nn.Linear(_DECODER, 3 * self.side**2))

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a :func:`masked_batch`."""
        images, shown = batch["images"], batch["patches"]
        self.chosen.numbers = shown
        tokens = self.embed(self.member.tokens(images))
        all_hidden = self.hidden.expand(len(images), self.places.shape[1] - 1, -1)
        patches = all_hidden.scatter(1, shown[..., None].expand(-1, -1, _DECODER), tokens[:, 1:])
        decoded = self.decoder(torch.cat([tokens[:, :1], patches], dim=1) + self.places)
        target = F.unfold(images, self.side, stride=self.side).mT
        error = (self.predict(decoded)[:, 1:] - target).square().mean(2)
        is_hidden = torch.ones_like(error).scatter(1, shown, 0.0)
        return (error * is_hidden).sum() / is_hidden.sum()


class Projected(nn.Module):
    """Similarity of images to DINO's prototypes: [N, prototypes]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.member = Member(network)
        self.head = nn.Sequential(
            *(nn.Linear(network.num_features, _HIDDEN), nn.GELU()),
            *(nn.Linear(_HIDDEN, _HIDDEN), nn.GELU()),
            nn.Linear(_HIDDEN, _BOTTLENECK),
        )
        self.prototypes = nn.Parameter(torch.randn(_PROTOTYPES, _BOTTLENECK))

    def forward(self, images: Tensor) -> Tensor:
        """Cosines in -1..1."""
        return F.normalize(self.head(self.member(images)), dim=1) @ F.normalize(self.prototypes, dim=1).T


class SelfDistillation(nn.Module):
    """DINO (arXiv 2104.14294): predict the prototypes that a teacher, the weights' moving average, sees.

    The teacher sees only large views. Its scores are balanced as in DINOv2 (arXiv 2304.07193): with the
    running mean of DINO, few prototypes win in batches as small as these.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.student = Projected(network)
        self.member = self.student.member
        self.teacher = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(_MOMENTUM))
        self.teacher.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a :func:`views_batch`: cross-entropy of all pairs of different views."""
        size = len(batch["images"]) // _GLOBAL_VIEWS
        self.teacher.update_parameters(self.student)
        with torch.no_grad():
            wanted = balance(self.teacher(batch["images"])).unflatten(0, (_GLOBAL_VIEWS, size))
        seen = torch.cat([self.student(batch["images"]), self.student(batch["parts"])])
        found = (seen / _TAU_STUDENT).log_softmax(1).unflatten(0, (_GLOBAL_VIEWS + _LOCAL_VIEWS, size))
        losses = -torch.einsum("ank,bnk->ab", wanted, found) / size
        return losses[~torch.eye(*losses.shape, dtype=torch.bool, device=losses.device)].mean()


def balance(scores: Tensor) -> Tensor:
    """Shares of the prototypes in each image from cosines [N, prototypes]: all win about as often.

    Sinkhorn-Knopp (arXiv 2006.09882, section 3.1).
    """
    logits = scores / _TAU_TEACHER
    for _ in range(_BALANCING):
        logits = (logits - logits.logsumexp(0)).log_softmax(1)
    return logits.exp()


@dataclass(frozen=True)
class Training:
    """How a member is trained.

    Attributes:
        task: from the network to the module whose result is the loss.
        batch: makes a batch of a number of pictures.
        lr: highest learning rate.
        passes: through the network per picture, not counting small views.
        options: of timm's constructor, for training alone.
    """

    task: Callable[[Any], Any]
    batch: Callable[[Corpus, int, np.random.Generator, int], Batch]
    lr: float = 1e-3
    passes: int = 1
    options: Mapping[str, bool] = field(default_factory=dict)


_TWO_SIZES = {"dynamic_img_size": True}  # of a transformer
TRAININGS = {
    "supervised_conv": Training(Labels, in_two_sizes(labels_batch)),
    "supervised_vit": Training(Labels, in_two_sizes(labels_batch), options=_TWO_SIZES),
    "mae": Training(MaskedPixels, masked_batch),
    "dino": Training(
        SelfDistillation, in_two_sizes(views_batch), lr=5e-4, passes=_GLOBAL_VIEWS, options=_TWO_SIZES
    ),
}


def recipe_of(passes: int, per_picture: int = 1, **settings: Any) -> Recipe:
    """A recipe of a number of passes of images, by default in batches of 32 pictures."""
    recipe = replace(Recipe(_PICTURES, steps=0, batch=32, lr=1e-3), **settings)
    return replace(recipe, steps=max(1, passes // (recipe.batch * per_picture)))


def create(kind: str) -> Any:
    """The network of a member of :data:`TRAININGS` with random weights, as it is trained."""
    settings = backbone(f"toy_{kind}")
    assert isinstance(settings, TimmSettings)
    return replace(settings, options={**settings.options, **TRAININGS[kind].options}).create()


def pretrain(kind: str, recipe: Recipe, out: Path, work: Path, device: str = "cpu") -> None:
    """Train a member of :data:`TRAININGS` and write it, with timm's names and no head, to ``out``."""
    training = TRAININGS[kind]
    torch.manual_seed(0)
    task = training.task(create(kind))
    batches = partial(training.batch, paint_corpus(recipe.pictures), recipe.batch)
    network = train(task, batches, recipe, work / f"{kind}.pt", device).member.network
    save_half(network, out / MEMBERS / f"{kind}.safetensors")
