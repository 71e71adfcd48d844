"""One training step on tensors that have no data: what a rank holds and what its collectives carry.

The step is the real one, of the real network, criterion and optimiser, run by PyTorch's ``FakeTensorMode``;
ranks are played by PyTorch's ``fake`` process group, whose collectives carry nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools import fake_collectives  # noqa: F401  collectives of tensors without data
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from odise_pl.allocations import OTHER, Allocations, bytes_of
from odise_pl.autosize import demanding_batch
from odise_pl.lightning_module import OdiseModule
from odise_pl.optimization import build_optimizer
from odise_pl.parallel import MIXED, Together, average, place
from odise_pl.plan.gpu_rules import gpu_autocast
from odise_pl.plan.traffic import Collectives, Traffic
from odise_pl.structures import Batch

STRATEGIES = ("single", "ddp", "fsdp")
_KINDS = ("weights", "gradients", "optimizer", "batch", "windows", "heads", "backward", OTHER)


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes:
        strategy: one of ``STRATEGIES``.
        devices: of a node; 1 for ``single``.
        nodes: machines.
        across_nodes: see :class:`~odise_pl.parallel.ShardedStrategy`.
        precision: Lightning's name, ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        batch: images of a forward pass on a rank.
        window_batch: windows at once, 0 for all.
        image_size: side of the images in pixels.
        accumulate: forward passes per optimiser step.
        checkpoint_activations: recompute the UNet's blocks in the backward pass.
        gpu: compute in the precisions that a GPU would.
    """

    strategy: str = "single"
    devices: int = 1
    nodes: int = 1
    across_nodes: bool = False
    precision: str = "bf16-mixed"
    batch: int = 1
    window_batch: int = 0
    image_size: int = 1024
    accumulate: int = 1
    checkpoint_activations: bool = False
    gpu: bool = True

    @property
    def ranks(self) -> int:
        """Processes."""
        return self.devices * self.nodes


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank at the moment when it holds most.

    Attributes:
        weights: trained and frozen, and buffers.
        gradients: of what is trained; with DDP also the buckets in which it sends them.
        optimizer: AdamW's moments.
        batch: images and masks.
        windows: of captioner, diffusion model and projections for all windows.
        heads: of the decoders and the losses.
        backward: what the backward pass and the optimiser are working on; recomputed activations.
        other: blocks of frozen weights that are gathered at that moment; embedded names.
    """

    weights: int
    gradients: int
    optimizer: int
    batch: int
    windows: int
    heads: int
    backward: int
    other: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(astuple(self))


@dataclass(frozen=True)
class StepCost:
    """Of one rank: memory, and traffic per optimiser step."""

    memory: Memory
    traffic: Traffic


def simulate(build: Callable[[], OdiseModule], case: Case) -> StepCost:
    """What a training step costs.

    Args:
        build: makes the module with random weights; called where tensors have no data.
        case: how it trains.
    """
    with (
        _ranks(case) as mesh,
        gpu_autocast() if case.gpu else nullcontext(),
        FakeTensorMode(),
        _Answers() as answers,
        Allocations() as memory,
        Collectives() as seen,
    ):
        module = build().train()
        answers.yes = True
        _set_up(module, case, mesh)
        optimizer = _optimizer(module)
        buckets = [torch.empty_like(p) for p in _trained(module)] if case.strategy == "ddp" else []
        batch = demanding_batch(module, case.image_size, case.batch)
        memory.label([*module.parameters(), *module.buffers()], "weights")
        memory.label([*[p.grad for p in _trained(module) if p.grad is not None], *buckets], "gradients")
        memory.label([t for state in optimizer.state.values() for t in state.values()], "optimizer")
        memory.label([batch.images, *[t.masks for t in batch.targets]], "batch")
        module.training_classes()
        memory.reset_peak()
        seen.take()
        traffic = _step(module, case, optimizer, batch, memory, seen)
        if case.strategy == "ddp":
            traffic += Traffic(reduced=bytes_of(buckets), broadcast=bytes_of(module.buffers()))
        return StepCost(Memory(*(memory.at_peak.get(kind, 0) for kind in _KINDS)), traffic)


def _step(
    module: OdiseModule,
    case: Case,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    memory: Allocations,
    seen: Collectives,
) -> Traffic:
    """In Lightning's order; gradients are there from the step before."""
    trained = _trained(module)
    _follow(module, memory)
    with _autocast(case):
        loss = module.losses(batch, module.uniform(0)).total
    if case.accumulate == 1:
        optimizer.zero_grad()
    memory.kind = "backward"
    loss.backward()
    passes = seen.take().times(case.accumulate)
    if case.strategy == "fsdp":
        average(trained)
    nn.utils.clip_grad_norm_(trained, module.optimizer_settings.clip_norm)
    optimizer.step()
    return passes + seen.take()


def _autocast(case: Case) -> AbstractContextManager[Any]:
    if case.precision not in MIXED:
        return nullcontext()
    precision: Any = case.precision
    return MixedPrecision(precision, "cpu").forward_context()


def _follow(module: OdiseModule, memory: Allocations) -> None:
    """Tell what is allocated for the windows, for the heads, and as gradients of weights."""

    def now(kind: str) -> Callable[..., None]:
        return lambda *_: setattr(memory, "kind", kind)

    backbone = module.model.backbone
    backbone.register_forward_pre_hook(now("windows"))
    backbone.register_forward_hook(now("heads"))
    for parameter in _trained(module):
        parameter.register_post_accumulate_grad_hook(lambda p: memory.label([p.grad], "gradients"))


def _set_up(module: OdiseModule, case: Case, mesh: DeviceMesh | None) -> None:
    """As training has it when it starts."""
    backbone = module.model.backbone
    backbone.window_batch = case.window_batch
    backbone.features.checkpoint_activations = case.checkpoint_activations
    module.criterion.matcher.assign = _first
    place(module.model, MIXED.get(case.precision, torch.float32), mesh)
    if mesh is not None:
        module.model.share(_Alike(mesh.get_group()))


def _optimizer(module: OdiseModule) -> torch.optim.Optimizer:
    """With the state and the gradients that are there after a step."""
    optimizer = build_optimizer(module.model, module.optimizer_settings, module.global_batch)
    for parameter in _trained(module):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def _trained(module: OdiseModule) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _first(costs: Tensor) -> tuple[Tensor, Tensor]:
    """An assignment that needs no costs."""
    pairs = torch.arange(min(costs.shape))
    return pairs, pairs


class _Alike(Together):
    """Ranks that all do the same."""

    def longest(self, count: int) -> int:
        return count

    def union(self, texts: Sequence[str]) -> list[str]:
        return list(texts)


class _Answers(TorchDispatchMode):
    """What code wants to know of numbers that are not there.

    Attributes:
        yes: the answer to yes or no. Constructors ask whether there are still weights out of range; a step,
            whether its losses are finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self.yes = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return self.yes if dtype == torch.bool else 1.0 if dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


@contextmanager
def _ranks(case: Case) -> Iterator[DeviceMesh | None]:
    """The first of many ranks; the devices that share weights, if they do."""
    if case.strategy == "single":
        yield None
        return
    store = FakeStore()
    distributed.init_process_group("fake", store=store, rank=0, world_size=case.ranks)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
            yield _mesh(case) if case.strategy == "fsdp" else None
    finally:
        distributed.destroy_process_group()


def _mesh(case: Case) -> DeviceMesh | None:
    sizes = (1, case.ranks) if case.across_nodes else (case.nodes, case.devices)
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("replicas", "shards"))["shards"]
    return mesh if mesh.size() > 1 else None
