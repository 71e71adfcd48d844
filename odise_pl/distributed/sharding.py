"""Several devices: everything that knows how the network lies on them.

The network is 1.3 billion frozen weights and 28 million trained ones, and is dealt out accordingly. The
frozen image and text networks are sharded by PyTorch's ``fully_shard``, block by block, over the devices of
a node (or over all): no device holds more than its part and the block that runs. The trained parts are
replicated: their gradients are averaged once per optimiser step. README says what was measured for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from odise_pl.models.backbones.sentences import PromptEncoder
from odise_pl.models.frozen import copy_to_memory
from odise_pl.models.odise import Odise
from odise_pl.models.ranks import Alone

# What is gathered at once: the parts of the frozen networks that are called as a whole.
BLOCKS = (
    ResnetBlock2D,
    Transformer2DModel,
    Attention,
    Downsample2D,
    Upsample2D,
    ResidualAttentionBlock,
    CLIPEncoderLayer,
    nn.Embedding,
)
# What is called of the network from outside.
ENTRANCES = ("encode_classes", "embed_words", "predict")
# Layers whose weights autocast rounds at every use.
ROUNDED = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
BUCKET = 2**23  # gradients that are averaged at once


class Together(Alone):
    """Ranks that hold the frozen weights together.

    Args:
        group: of these ranks; None: all.
    """

    shared = True

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self._group = group

    def longest(self, count: int) -> int:
        """The largest ``count`` of all ranks."""
        found: list[int] = [0] * distributed.get_world_size(self._group)
        distributed.all_gather_object(found, count, self._group)
        return max(found)

    def union(self, texts: Sequence[str]) -> list[str]:
        """The texts of all ranks, each once, in the same order everywhere."""
        found: list[list[str]] = [[]] * distributed.get_world_size(self._group)
        distributed.all_gather_object(found, list(texts), self._group)
        return list(dict.fromkeys(text for some in found for text in some))

    def gather(self, block: nn.Module) -> None:
        """Make a block's weights whole until its forward has run."""
        assert isinstance(block, FSDPModule)
        block.unshard()


class ShardedStrategy(ModelParallelStrategy):
    """Frozen weights sharded, trained ones replicated; checkpoints are the same as those of one device.

    Args:
        across_nodes: shard over all devices instead of those of a node, whose connections are faster.
        options: see Lightning's ``ModelParallelStrategy``.
    """

    def __init__(self, across_nodes: bool = False, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **options)
        self.across_nodes = across_nodes
        self._average = True

    def setup_environment(self) -> None:
        """Devices of a node in one dimension, nodes in the other."""
        nodes, devices = self.num_nodes, self.num_processes
        sizes = (1, nodes * devices) if self.across_nodes else (nodes, devices)
        self._data_parallel_size, self._tensor_parallel_size = sizes
        super().setup_environment()

    @property
    def shards(self) -> DeviceMesh:
        """The devices that hold the frozen weights together."""
        return self.device_mesh["tensor_parallel"]

    def setup(self, trainer: lightning.Trainer) -> None:
        """Start from the same trained weights everywhere."""
        super().setup(trainer)
        # outputs of the network are not changed in place
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
        with torch.no_grad():
            for parameter in self._trained():
                distributed.broadcast(parameter, 0)

    def _trained(self) -> list[nn.Parameter]:
        assert self.model is not None
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients that are still accumulated are not averaged."""
        self._average = False
        try:
            yield
        finally:
            self._average = True

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of all ranks."""
        super().post_backward(closure_loss)
        if self._average:
            average(self._trained())

    # Nothing that is saved is sharded: what Lightning does for one device is right for us.
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True
    lightning_module_state_dict = ParallelStrategy.lightning_module_state_dict
    load_model_state_dict = ParallelStrategy.load_model_state_dict
    optimizer_state = ParallelStrategy.optimizer_state
    load_optimizer_state_dict = ParallelStrategy.load_optimizer_state_dict
    save_checkpoint = ParallelStrategy.save_checkpoint
    load_checkpoint = ParallelStrategy.load_checkpoint


def average(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over all ranks; one that is missing counts as zero."""
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            _average(bucket)
            bucket = []
    _average(bucket)


def _average(gradients: Sequence[Tensor]) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def place_all(module: nn.Module, trainer: lightning.Trainer) -> None:
    """:func:`place` every network that a module contains as the trainer's strategy and precision ask."""
    strategy, dtype = trainer.strategy, MIXED.get(str(trainer.precision), torch.float32)
    mesh = strategy.shards if isinstance(strategy, ShardedStrategy) else None
    mesh = None if mesh is None or mesh.size() == 1 else mesh
    for network in [part for part in module.modules() if isinstance(part, Odise)]:
        place(network, dtype, mesh)


def place(model: Odise, dtype: torch.dtype = torch.float32, mesh: DeviceMesh | None = None) -> None:
    """Give a network the frozen weights that this process holds; what is placed already, stays.

    Args:
        model: the network; its frozen weights may still lie in mapped files.
        dtype: in which layers compute under autocast: frozen weights that autocast would round at every use
            are kept rounded, which changes no result, takes half the memory, and saves the backward pass
            from keeping the rounded copies.
        mesh: shard over these devices; None: hold all weights.
    """
    if model.ranks.shared:
        return
    rounded = set() if dtype == torch.float32 else {id(weight) for weight in _rounded(model)}
    for block in blocks(model) if mesh is not None else ():
        for parameter in block.parameters():
            _hold(parameter, dtype if id(parameter) in rounded else None, model.mapped)
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=_small(block))
    for parameter in [p for network in _networks(model) for p in network.parameters()]:
        if not isinstance(parameter, DTensor):
            _hold(parameter, dtype if id(parameter) in rounded else None, model.mapped)
    if mesh is not None:
        _join(model, mesh)
    model.mapped = False


def _hold(parameter: nn.Parameter, dtype: torch.dtype | None, mapped: bool) -> None:
    """In memory of this process, in ``dtype``; None: in full precision."""
    dtype = dtype or torch.promote_types(parameter.dtype, torch.float32)
    if mapped or parameter.dtype != dtype:
        copy_to_memory([parameter], dtype)


def _join(model: Odise, mesh: DeviceMesh) -> None:
    """Make one whole of the sharded blocks: they take turns in being gathered, and ranks keep in step."""
    fully_shard(
        model, mesh=mesh, ignored_params={p for p in model.parameters() if not isinstance(p, DTensor)}
    )
    for method in ENTRANCES:
        register_fsdp_forward_method(model, method)
    model.share(Together(mesh.get_group()))


def blocks(model: Odise) -> Iterator[nn.Module]:
    """The parts of the frozen networks that are gathered at once, none of which is a part of another."""
    for network in _networks(model):
        yield from _blocks(network)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, BLOCKS):
        yield module
        return
    for child in module.children():
        yield from _blocks(child)


def _networks(model: Odise) -> list[nn.Module]:
    """The frozen networks. A captioning model is none of them: it runs as often as its words need."""
    encoders = [module.text_encoder for module in model.modules() if isinstance(module, PromptEncoder)]
    features = model.backbone.features
    return [features.unet, features.vae, model.clip.model, *encoders]


def _rounded(model: Odise) -> Iterator[nn.Parameter]:
    """Weights of the image networks that only layers use which autocast runs in low precision.

    The text encoders also run without autocast.
    """
    for network in (model.backbone.features.unet, model.backbone.features.vae, model.clip.model.visual):
        for layer in network.modules():
            if isinstance(layer, ROUNDED):
                yield from (p for p in layer.parameters(recurse=False) if p.dim() > 1)


def _small(block: nn.Module) -> set[nn.Parameter]:
    """Biases and norms, which are not worth a collective."""
    return {parameter for parameter in block.parameters() if parameter.dim() < 2}
