"""Trained parts replicated or sharded, beside frozen ones that are sharded: memory, traffic and time.

``python scripts/bench_sharding.py`` starts two processes on this machine (gloo) that train heads of the
published size on a small diffusion model with random weights, so that what differs is what is trained.
Traffic is what the loopback device counts: keep the machine's network quiet.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from odise_pl.distributed.sharding import average, place
from odise_pl.models.backbones.clip import CLIPArchitecture
from odise_pl.models.backbones.stable_diffusion import DiffusionArchitecture
from odise_pl.models.build import (
    BackboneSettings,
    ClipSettings,
    HeadSettings,
    build_odise,
    implicit_captioner,
)
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import ClassifierSettings, Odise
from odise_pl.training.optimization import OptimizerSettings, build_optimizer

MIB = 2**20
SMALL = DiffusionArchitecture(
    unet_channels=(32, 32, 64, 64),
    heads=2,
    context_dim=64,
    vae_channels=(32, 32, 32, 64),
    text_width=64,
    text_mlp=128,
    text_layers=2,
    text_heads=4,
)
SMALL_CLIP = CLIPArchitecture(
    image_size=112, vision_width=128, vision_layers=2, text_width=128, text_layers=2, text_heads=2
)


@dataclass(frozen=True)
class Cost:
    """Of one rank.

    Attributes:
        held: bytes of trained weights, gradients and optimiser state after a step.
        traffic: bytes sent per optimiser step.
        seconds: per optimiser step.
    """

    held: int
    traffic: float
    seconds: float


def build() -> Odise:
    """The published heads on a small backbone."""
    torch.manual_seed(0)
    return build_odise(
        BackboneSettings(architecture=SMALL, input_size=64, window=64),
        ClipSettings(architecture=SMALL_CLIP),
        implicit_captioner(),
        HeadSettings(),
        ClassifierSettings(),
        InferenceSettings(),
    ).train()


def shard_trained(model: Odise) -> None:
    """Every trained part in shards as well, layer by layer."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    pixel, mask = model.pixel_decoder, model.mask_decoder
    layers = [layer for part in (pixel, mask) for stack in part.children() if isinstance(stack, nn.ModuleList)
              for layer in stack]  # fmt: skip
    for part in (*layers, *model.backbone.pyramid.projections, pixel, mask, model.text_projection):
        fully_shard(part, mesh=mesh, ignored_params={p for p in part.parameters() if not p.dim()})


def bytes_of(tensor: torch.Tensor) -> int:
    """What this rank holds of a tensor."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def measure(rank: int, folder: str, sharded: bool, steps: int, accumulate: int) -> None:
    """One rank."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = build()
    if sharded:
        shard_trained(model)
    place(model, mesh=init_device_mesh("cpu", (2,)))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(model, OptimizerSettings(), 64)
    classes = model.encode_classes([("dog",), ("grass",), ("sky",)])
    costs: list[tuple[float, float]] = []
    for _ in range(steps + 1):  # the first one warms up
        distributed.barrier()
        start, sent = time.perf_counter(), psutil.net_io_counters(pernic=True)["lo"].bytes_sent
        for _ in range(accumulate):
            outputs = model(torch.rand(1, 3, 64, 64), classes)
            sum(o.mask_logits.mean() + o.class_logits.mean() for o in outputs).backward()
        average([p for p in trained if not isinstance(p, DTensor)])
        nn.utils.clip_grad_norm_([p for p in trained if not isinstance(p, DTensor)], 0.01)
        optimizer.step()
        distributed.barrier()
        seconds, counters = time.perf_counter() - start, psutil.net_io_counters(pernic=True)["lo"]
        costs.append((counters.bytes_sent - sent, seconds))
        states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
        held = sum(map(bytes_of, [*trained, *(p.grad for p in trained if p.grad is not None), *states]))
        optimizer.zero_grad()
    sent, seconds = (sorted(values)[len(values) // 2] for values in zip(*costs[1:], strict=True))
    if rank == 0:
        torch.save(asdict(Cost(held, sent / 2, seconds)), f"{folder}/cost.pt")
    distributed.destroy_process_group()


def cost(sharded: bool, steps: int, accumulate: int) -> Cost:
    """Of one way, on two processes of this machine."""
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(measure, (folder, sharded, steps, accumulate), nprocs=2)
        return Cost(**torch.load(Path(folder, "cost.pt"), weights_only=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps that are measured; the median")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    table = Table("trained parts", "forward passes per step", "held (MiB)", "sent per step (MiB)", "step (s)")
    for accumulate in (1, 4):
        for name, sharded in (("replicated", False), ("sharded", True)):
            found = cost(sharded, options.steps, accumulate)
            sizes = (f"{found.held / MIB:.0f}", f"{found.traffic / MIB:.0f}", f"{found.seconds:.2f}")
            table.add_row(name, str(accumulate), *sizes)
    Console().print(table)


if __name__ == "__main__":
    main()
