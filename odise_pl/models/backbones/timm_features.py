"""Features of any network of timm that returns intermediate maps; names and weights are timm's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from odise_pl.errors import SettingError, check_flag, hub_errors
from odise_pl.files import is_path
from odise_pl.models.backbones.contract import Conditioning, ConditioningSpec, Features, Tap
from odise_pl.models.backbones.feature_backbone import FeatureSettings
from odise_pl.models.backbones.pyramid import STRIDES, Pyramid, SimplePyramid
from odise_pl.models.frozen import inner_blocks
from odise_pl.models.weights import WeightsError, list_first, read_checkpoint, require_finite, tensors_of

PYRAMIDS = ("depths", "simple")
_FILE = "model.safetensors"  # of timm's repositories on the Hub
_PATCHES = "patch_embed.proj.weight"


class TimmFeatures(Features):
    """Maps of some blocks of a plain transformer, or of the stages of a hierarchical network.

    Args:
        model: a classifier of timm, built for ``S x S`` pixels; its head and unused blocks are removed.
        blocks: indices of a plain transformer's blocks; None: the ends of its four quarters, or the last.
        last_only: one map, of one block.
        final_norm: apply a plain transformer's final norm to each map.
        trained: train the network, at the learning rate of ``optimizer.lr_scale``.

    Raises:
        SettingError: the network returns no intermediate maps, or has no such blocks.
    """

    mean: Tensor
    std: Tensor
    model: Any  # timm's models have these methods without a common base

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[int] | None = None,
        last_only: bool = False,
        final_norm: bool = True,
        trained: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        if not hasattr(model, "forward_intermediates"):
            raise SettingError(f"backbone.model: timm's {type(model).__name__} returns no intermediate maps")
        infos = list(self.model.feature_info)
        if not infos:
            raise SettingError("backbone.options: this network has no blocks")
        self._reductions = [info["reduction"] for info in infos]
        self._plain = len(set(self._reductions)) == 1
        self._final_norm = final_norm and self._plain
        fixed = self.model.pretrained_cfg.get("fixed_input_size")
        self.fixed_size = bool(fixed) and not getattr(model, "dynamic_img_size", False)
        if last_only and not self._plain:
            raise SettingError("backbone.pyramid=simple is for plain transformers; this network has stages")
        self._indices = self._choose(blocks, 1 if last_only else len(STRIDES))
        self._channels = [infos[i]["num_chs"] for i in self._indices]
        self.model.prune_intermediate_layers(self._indices, prune_norm=not self._final_norm)
        for name in ("mean", "std"):
            values = torch.tensor(self.model.pretrained_cfg[name]).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.freeze()
        self.requires_grad_(trained)

    def _choose(self, blocks: Sequence[int] | None, wanted: int) -> list[int]:
        count = len(self._reductions)
        if not self._plain:
            if blocks is not None:
                raise SettingError(f"backbone.taps={list(blocks)}: the network has stages; set it to null")
            return [i for i, stride in enumerate(self._reductions) if STRIDES[0] <= stride <= STRIDES[-1]]
        if count < wanted:
            raise SettingError(f"the network has {count} blocks; backbone.pyramid=depths needs four")
        ends = [-(-i * count // wanted) - 1 for i in range(1, wanted + 1)]
        chosen = ends if blocks is None else sorted(blocks)
        if not len(set(chosen)) == len(chosen) == wanted or not all(0 <= i < count for i in chosen):
            limits = f"in 0..{count - 1}"
            if wanted == 1:
                raise SettingError(f"backbone.taps={chosen}: give one block {limits}")
            raise SettingError(f"backbone.taps={chosen}: give four different blocks {limits}")
        return chosen

    @property
    def taps(self) -> list[Tap]:
        """Blocks of a plain transformer stand for strides 4 to 32 in order; stages have their own."""
        strides: Sequence[int] = [self._reductions[i] for i in self._indices]
        if self._plain and len(self._indices) == len(STRIDES):
            strides = STRIDES
        kind = "block" if self._plain else "stage"
        triples = zip(self._indices, self._channels, strides, strict=True)
        return [Tap(f"{kind}.{i}", channels, stride, pooled=True) for i, channels, stride in triples]

    @property
    def input_multiple(self) -> int:
        """The patch, or the stride of the last stage."""
        return max(self._reductions)

    def blocks(self) -> Iterator[nn.Module]:
        """The residual blocks, which timm keeps in lists of this name; ResNets have none and stay whole."""
        return inner_blocks(self.model)

    def forward(self, images: Tensor, conditioning: Conditioning | None = None) -> list[Tensor]:
        """Maps of all taps for images [N, 3, H, W] in 0..1: squares of one size if it is fixed."""
        maps: list[Tensor] = self.model.forward_intermediates(
            (images - self.mean) / self.std,
            indices=self._indices,
            norm=self._final_norm,
            stop_early=True,
            intermediates_only=True,
        )
        # some have a channels-last layout, in which GroupNorm on CPUs is less accurate
        return [one.contiguous() for one in maps]


@dataclass(frozen=True)
class TimmSettings(FeatureSettings):
    """Settings of a network of timm.

    Attributes:
        model: timm's name, with the tag that says how it was trained and normalises its input.
        weights: a file in timm's or the official format, a hub id with timm's names, or ``random``.
        taps: four blocks of a plain transformer, from 0; None: the ends of its four quarters. With the
            simple pyramid one block; None: the last.
        final_norm: apply a plain transformer's final norm to each map.
        pyramid: of a plain transformer: ``depths`` resizes the maps of four blocks; ``simple`` trains
            ViTDet's pyramid (arXiv 2203.16527) on one.
        trained: train the network too; ``optimizer.lr_scale={backbone.features: 0.1}`` lowers its rate.
        options: numbers that replace arguments of the network's constructor, such as its ``depth``.
    """

    model: str
    weights: str = "random"
    taps: Sequence[int] | None = None
    final_norm: bool = True
    pyramid: str = "depths"
    trained: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("backbone.trained", self.trained)
        check_flag("backbone.final_norm", self.final_norm)
        if not isinstance(self.model, str):
            raise SettingError(f"backbone.model={self.model}: give a name of timm.list_models()")
        if not isinstance(self.weights, str):
            raise SettingError(f"backbone.weights={self.weights}: give a file, a hub id, or random")
        taps = [] if self.taps is None else _listed(self.taps)
        if not all(type(i) is int for i in taps) or isinstance(self.taps, int):
            raise SettingError(f"backbone.taps={self.taps}: give four blocks, as [5,11,17,23], or null")
        if not isinstance(self.options, Mapping):
            raise SettingError(f"backbone.options={self.options}: give names and numbers, as {{depth: 4}}")
        if self.pyramid not in PYRAMIDS:
            raise SettingError(f"backbone.pyramid={self.pyramid}: choose one of {', '.join(PYRAMIDS)}")
        for name, value in self.options.items():  # timm takes files and addresses as text
            if not all(isinstance(number, int | float) for number in _listed(value)):
                raise SettingError(f"backbone.options.{name}={value}: give a number, or a list of numbers")

    @property
    def conditioned(self) -> bool:
        """False."""
        return False

    def load(self, mapped: bool = False) -> tuple[Features, ConditioningSpec | None]:
        """The network; timm copies its weights, so they are never mapped."""
        if not timm.is_model(self.model):
            raise SettingError(
                f"backbone.model={self.model}: timm {timm.__version__} has no such model; a newer one may: "
                "pip install -U timm"
            )
        try:  # before a download
            timm.get_pretrained_cfg(self.model, allow_unregistered="." not in self.model)
        except RuntimeError as error:
            raise SettingError(
                f"backbone.model={self.model} cannot be built: {error} See timm.list_pretrained()"
            ) from error
        tensors = None if self.weights == "random" else read_weights(self.weights)
        try:
            network = self.create(tensors)
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
            reason = _reason(error)
            if tensors is not None and isinstance(error, KeyError):  # of timm's conversion: a bare name
                reason = f"its names are of another network ({reason} is missing)"
            if "unexpected keyword argument" in reason:
                reason += "; remove it from backbone.options"
            elif tensors is not None:
                way_out = "choose the backbone.model and backbone.options of the file"
                if re.search(r'Missing key\(s\) in state_dict: "(head|fc|classifier)\b', str(error)):
                    way_out = "if the file has no classifier, add ++backbone.options.num_classes=0"
                problem = f"{self.weights} does not fit backbone.model={self.model}: {reason}; {way_out}"
                raise WeightsError(problem) from error
            raise SettingError(f"backbone.model={self.model} cannot be built: {reason}") from error
        features = TimmFeatures(network, self.taps, self.pyramid == "simple", self.final_norm, self.trained)
        self._check_maps(features)
        return features, None

    def _check_maps(self, features: TimmFeatures) -> None:
        """Run the network without memory or arithmetic, so that what does not fit ends before training."""
        if self.input_size % features.input_multiple:
            return  # the backbone names it
        held = {**dict(features.named_parameters()), **dict(features.named_buffers())}
        images = torch.empty(1, 3, self.input_size, self.input_size, device="meta")
        try:
            with torch.no_grad():
                maps = functional_call(features, {n: t.to("meta") for n, t in held.items()}, images)
        except (RuntimeError, AssertionError) as error:
            reason = _reason(error)
            if "meta" in reason:
                return  # not every network can run so
            raise SettingError(
                f"backbone.model={self.model} cannot take images of 3 x {self.input_size} x {self.input_size}"
                f" pixels; check backbone.options and backbone.input_size: {reason}"
            ) from error
        if [one.shape[1] for one in maps] != [tap.channels for tap in features.taps]:
            raise SettingError(
                f"backbone.model={self.model}: maps have other channels than timm says; "
                "set backbone.final_norm=false"
            )

    def projections(self, features: Features) -> Pyramid:
        """See :attr:`pyramid`."""
        if self.pyramid == "simple" and self.channels is not None:
            return SimplePyramid(features.taps[-1], self.channels)
        return super().projections(features)

    def create(self, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """timm's network with some weights, or with random ones; whatever does not fit, timm raises."""
        options: dict[str, Any] = {
            name: list(value) if isinstance(value, Sequence) else value
            for name, value in self.options.items()
        }
        if timm.get_pretrained_cfg_value(self.model, "fixed_input_size"):
            options.setdefault("img_size", self.input_size)
        if tensors is not None:
            tensors, headless = _unwrap(tensors)
            overlay: dict[str, Any] = {"state_dict": {n: t.as_subclass(_Shared) for n, t in tensors.items()}}
            if headless:
                options["num_classes"] = 0
            if "num_classes" in options:  # also of the weights, else timm would not mind missing ones
                overlay["num_classes"] = options["num_classes"]
            options["pretrained_cfg_overlay"] = overlay
        network = timm.create_model(self.model, **options | {"pretrained": tensors is not None})
        network.pretrained_cfg.pop("state_dict", None)  # timm would keep them
        return network


class _Shared(Tensor):
    """A tensor that timm's copies of its settings do not copy."""

    def __deepcopy__(self, memo: object) -> _Shared:
        return self


def _reason(error: Exception) -> str:
    """The text of a library's error in one line, with the first names of weights; its type if it has none."""
    text = str(error)
    problems = {
        kind.lower(): re.findall('"([^"]+)"', names)
        for kind, names in re.findall(r"(Missing|Unexpected) key\(s\) in state_dict: (.*)", text)
    }
    problems["of another shape"] = [
        f"{name}: {given} in the file, {wanted} in the model"
        for name, given, wanted in re.findall(
            r"size mismatch for (\S+):.*?Size\((.*?)\).*?Size\((.*?)\)", text
        )
    ]
    mismatches = "; ".join(list_first(kind, names, 2) for kind, names in problems.items() if names)
    return mismatches or " ".join(text.split())[:300] or type(error).__name__


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def read_weights(weights: str) -> dict[str, Tensor]:
    """The tensors of a file, or of a repository of the Hub, which is downloaded once.

    Raises:
        WeightsError: the file is missing, damaged, or holds no finite tensors.
        DownloadError: the Hub cannot be reached or refuses.
    """
    path = Path(weights)
    if "/" in weights and not is_path(weights):
        from huggingface_hub import hf_hub_download

        with hub_errors(weights):
            path = Path(hf_hub_download(weights, _FILE))
    held = read_checkpoint(path)
    tensors = tensors_of(held)
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors at the top level, under state_dict or under model, only "
            f"{', '.join(map(str, held))[:200] or 'nothing'}; save those of the network under state_dict"
        )
    require_finite(tensors, str(path))
    return tensors


def _unwrap(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """The network without the prefix of a training that wraps it, and whether there was one.

    MoCo-v3 trains ``module.base_encoder.*`` beside a momentum encoder, SimMIM ``encoder.*`` beside a decoder,
    and calls Swin's ``cpb_mlp`` ``rpe_mlp``.
    """
    found = [name.removesuffix(_PATCHES) for name in tensors if name.endswith(_PATCHES)]
    wrapped = [prefix for prefix in found if prefix and "momentum" not in prefix]
    if len(wrapped) != 1 or "" in found:
        return dict(tensors), False
    own = {n.removeprefix(wrapped[0]): t for n, t in tensors.items() if n.startswith(wrapped[0])}
    kept = {n.replace(".rpe_mlp.", ".cpb_mlp."): t for n, t in own.items()}
    return {n: t for n, t in kept.items() if not n.startswith(("head.", "mask_token"))}, True
