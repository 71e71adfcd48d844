"""Lightning's side of :mod:`odise_pl.distributed.sharding`."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from odise_pl.distributed.sharding import place
from odise_pl.models.odise import Odise

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class ShardedStrategy(DDPStrategy):
    """DDP whose frozen image networks are sharded over the devices of a node.

    Checkpoints are the same as those of one device; ``options`` are those of Lightning's ``DDPStrategy``.
    """

    def __init__(self, **options: Any) -> None:
        # else DDP regroups gradients into buckets after the first step, and a resumed run would sum them in
        # another order than an undisturbed one
        super().__init__(find_unused_parameters=True, **options)

    @cached_property
    def shards(self) -> DeviceMesh:
        """The devices that hold the frozen weights together."""
        sizes = (self.num_nodes, self.num_processes)
        return init_device_mesh(self.root_device.type, sizes, mesh_dim_names=("nodes", "devices"))["devices"]

    def setup(self, trainer: lightning.Trainer) -> None:
        """Start from the same weights everywhere, except for the shards."""
        assert self.model is not None
        shards = [name for name, parameter in self.model.named_parameters() if isinstance(parameter, DTensor)]
        # DDP and Lightning copy rank 0's weights to all ranks; there is no public way to exclude some
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, shards)
        super().setup(trainer)


def place_all(module: nn.Module, trainer: lightning.Trainer) -> None:
    """:func:`place` every network that a module contains as the trainer's strategy and precision ask."""
    strategy, dtype = trainer.strategy, MIXED.get(str(trainer.precision), torch.float32)
    mesh = strategy.shards if isinstance(strategy, ShardedStrategy) else None
    mesh = None if mesh is None or mesh.size() == 1 else mesh
    for network in [part for part in module.modules() if isinstance(part, Odise)]:
        place(network, dtype, mesh)
