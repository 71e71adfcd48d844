"""Several devices: everything that knows how the network is distributed over them.

The network is 1.3 billion frozen weights and 28 million trained ones. The frozen image networks are sharded
by PyTorch's ``fully_shard``, block by block, over the devices of a node: no device holds more
than its part and the block that runs. The trained parts and the text encoders, which are small and rarely
run, are whole on every device; gradients are averaged by ``DistributedDataParallel``.

A sharded block runs on all ranks together, so all have to run the blocks equally often. The hooks of
:class:`EqualPasses` and :func:`keep_in_step` see to that.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from odise_pl.models.backbones.captioners import Captions, TextCaptioner
from odise_pl.models.backbones.feature_backbone import FeatureBackbone
from odise_pl.models.classifiers.text import InferenceClasses
from odise_pl.models.frozen import copy_to_memory
from odise_pl.models.network import SegmentationNetwork
from odise_pl.models.odise import Odise
from odise_pl.structures import CANVAS_MULTIPLE

# Layers whose weights autocast rounds at every use.
ROUNDED = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class EqualPasses:
    """Forward hooks of a backbone: all ranks run the frozen networks as often as the one with most windows.

    Args:
        group: ranks that hold the weights together.
    """

    def __init__(self, group: distributed.ProcessGroup) -> None:
        self._group, self._missing = group, 0

    def attach(self, backbone: FeatureBackbone) -> None:
        """Register the hooks."""
        backbone.register_forward_pre_hook(self._count)
        backbone.register_forward_hook(self._add_missing)

    def _count(self, backbone: FeatureBackbone, inputs: tuple[Tensor, Captions]) -> None:
        # agreed before the first pass, whose collectives must not meet those of the count
        passes = backbone.passes(inputs[0])
        most = torch.tensor(passes, device=inputs[0].device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX, self._group)
        self._missing = int(most) - passes

    def _add_missing(
        self, backbone: FeatureBackbone, inputs: tuple[Tensor, Captions], levels: list[Tensor]
    ) -> list[Tensor]:
        """Run a corner of an image; with weight 0 in the result, it takes part in the backward pass, too."""
        images, captions = inputs
        corner = images[:1, :, :CANVAS_MULTIPLE, :CANVAS_MULTIPLE]
        for _ in range(self._missing):
            unused = backbone.forward(corner, captions and captions[:1])
            levels = [level + 0 * x.sum() for level, x in zip(levels, unused, strict=True)]
        return levels


def keep_in_step(model: SegmentationNetwork, classes: InferenceClasses) -> None:
    """Take part in :meth:`Odise.predict` of other ranks without an image; does nothing without shards."""
    if isinstance(model, FSDPModule):
        size = (CANVAS_MULTIPLE, CANVAS_MULTIPLE)
        nothing = classes.clip_text.embeddings.new_zeros(1, 3, *size)  # of their device and precision
        model.predict(nothing, [size], [size], classes, [""])


def place(
    model: SegmentationNetwork, dtype: torch.dtype = torch.float32, mesh: DeviceMesh | None = None
) -> None:
    """Give a network the frozen weights that this process holds; a sharded network stays as it is.

    Args:
        model: the network; its frozen weights may still lie in mapped files. GroupViT has none, and stays.
        dtype: in which layers compute under autocast: frozen weights that autocast would round at every use
            are kept rounded, which changes no result, takes half the memory, and saves the backward pass
            from keeping the rounded copies.
        mesh: shard over these devices; None: hold all weights.
    """
    if isinstance(model, FSDPModule) or not isinstance(model, Odise):
        return
    rounded = set() if dtype == torch.float32 else {id(weight) for weight in _rounded(model)}
    for block in _frozen_blocks(model) if mesh is not None else ():
        for parameter in block.parameters():
            _hold(parameter, dtype if id(parameter) in rounded else None, model.mapped)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=_small(block))
    for parameter in [p for network in _frozen_networks(model) for p in network.parameters()]:
        if not isinstance(parameter, DTensor):
            _hold(parameter, dtype if id(parameter) in rounded else None, model.mapped)
    if mesh is not None:
        _join(model, mesh)
    model.mapped = False


def _frozen_blocks(model: Odise) -> list[nn.Module]:
    """Blocks to shard: not trained ones.

    Nor CLIP's if a refinement reads their weights, or for crops: ranks with more images need more passes.
    """
    whole = model.refinement is not None or model.classifier.regions == "cropped"
    blocks = [*model.backbone.features.blocks(), *(() if whole else model.clip.blocks())]
    return [block for block in blocks if not any(p.requires_grad for p in block.parameters())]


def _hold(parameter: nn.Parameter, dtype: torch.dtype | None, mapped: bool) -> None:
    """In memory of this process, in ``dtype``; None: in full precision."""
    dtype = dtype or torch.promote_types(parameter.dtype, torch.float32)
    if mapped or parameter.dtype != dtype:
        copy_to_memory([parameter], dtype)


def _join(model: Odise, mesh: DeviceMesh) -> None:
    """Make the sharded blocks one network, in which they are gathered in turn, and keep ranks in step."""
    fully_shard(
        model, mesh=mesh, ignored_params={p for p in model.parameters() if not isinstance(p, DTensor)}
    )
    register_fsdp_forward_method(model, "predict")
    EqualPasses(mesh.get_group()).attach(model.backbone)


def _image_networks(model: Odise) -> list[nn.Module]:
    return [model.backbone.features, model.clip.model.visual]


def _frozen_networks(model: Odise) -> list[nn.Module]:
    """All but a captioning model."""
    encoders = [module.encode for module in model.modules() if isinstance(module, TextCaptioner)]
    return [*_image_networks(model), model.clip.model, *encoders]


def _rounded(model: Odise) -> Iterator[nn.Parameter]:
    """Frozen weights that only layers use which autocast runs in low precision.

    Text encoders run without autocast.
    """
    for network in _image_networks(model):
        yield from (weight for weight in _matrices(network) if not weight.requires_grad)


def _matrices(network: nn.Module) -> Iterator[nn.Parameter]:
    for layer in network.modules():
        if isinstance(layer, ROUNDED):
            yield from (p for p in layer.parameters(recurse=False) if p.dim() > 1)


def _small(block: nn.Module) -> set[nn.Parameter]:
    """Biases, norms and tables of positions, which are not worth a collective."""
    return {*block.parameters()} - {*_matrices(block)}
