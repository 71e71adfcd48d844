"""Plans as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from rich import box
from rich.table import Table

from odise_pl.autosize import largest_batch
from odise_pl.plan.fitting import GIB, Need, fits
from odise_pl.plan.simulation import Case, Memory, StepCost
from odise_pl.plan.traffic import Traffic

_MEMORY = {
    "weights": "weights, trained and frozen",
    "gradients": "gradients (DDP: and its buckets)",
    "optimizer": "optimiser",
    "batch": "images and masks",
    "windows": "activations of the windows",
    "heads": "activations of decoders and losses",
    "backward": "workspace of the backward pass",
    "other": "gathered blocks, embedded names",
}
_TRAFFIC = {
    "gathered": "all-gathered",
    "scattered": "reduce-scattered",
    "reduced": "all-reduced",
    "broadcast": "broadcast",
}


@dataclass(frozen=True)
class Column:
    """A case and what it costs."""

    case: Case
    cost: StepCost


def cost_table(columns: Sequence[Column], memory: float | None) -> Table:
    """Memory and traffic of several cases side by side.

    Args:
        columns: the cases.
        memory: of a device in GiB, to say whether they fit.
    """
    table = Table("GiB of each device", box=box.SIMPLE, title=_title(columns[0].case), title_justify="left")
    for column in columns:
        table.add_column(name(column.case), justify="right")
    for field in fields(Memory):
        values = [getattr(column.cost.memory, field.name) for column in columns]
        table.add_row(_MEMORY[field.name], *map(_gib, values))
    table.add_row("in all, at the peak", *[_gib(column.cost.memory.total) for column in columns])
    if memory is not None:
        answers = ["yes" if fits(column.cost.memory.total, memory) else "no" for column in columns]
        table.add_row(f"fits in {memory:g}", *answers)
    table.add_section()
    table.add_row("forward passes in an optimiser step", *[str(column.case.accumulate) for column in columns])
    for field in fields(Traffic):
        values = [getattr(column.cost.traffic, field.name) for column in columns]
        table.add_row(f"{_TRAFFIC[field.name]} in an optimiser step", *map(_gib, values))
    table.add_row("sent by each device, in rings", *[_gib(sent(column)) for column in columns])
    return table


def _title(case: Case) -> str:
    device = "GPU" if case.gpu else "processor"
    size, windows = case.image_size, case.window_batch or "all"
    return (
        f"{size} x {size}, batch {case.batch} on each {device}, {windows} windows at once"
        f", {case.precision}"
        + (", activations of the UNet recomputed" if case.checkpoint_activations else "")
    )


def name(case: Case) -> str:
    """The strategy and its devices."""
    if case.strategy == "single":
        return "single"
    machines = f"{case.nodes} x " if case.nodes > 1 else ""
    return f"{case.strategy}, {machines}{case.devices} devices"


def sent(column: Column) -> float:
    """Bytes that a device sends in an optimiser step when collectives run in rings."""
    ranks, traffic = column.case.ranks, column.cost.traffic
    sharing = ranks if column.case.across_nodes else column.case.devices
    once = (traffic.gathered + traffic.scattered) * (sharing - 1) / sharing
    return once + 2 * traffic.reduced * (ranks - 1) / ranks + traffic.broadcast


def setting(case: Case) -> str:
    """What to say to train.py."""
    said = [f"data.batch_size={case.batch}"]
    said += ["backbone.checkpoint_activations=true"] if case.checkpoint_activations else []
    said += [f"backbone.window_batch={case.window_batch}"] if case.window_batch else []
    return " ".join(said)


def device_table(needs: Sequence[tuple[Case, Need]], global_batch: int, memory: Sequence[float]) -> Table:
    """How many images at once fit into devices of several sizes.

    Args:
        needs: cases, and what an image takes in them; their own batch is of no account.
        global_batch: of an optimiser step; batches divide it.
        memory: of the devices in GiB.
    """
    table = Table("images at once", "activations", "windows at once", box=box.MARKDOWN)
    for size in memory:
        table.add_column(f"{size:g} GB", justify="right")
    for case, needed in needs:
        step = global_batch // case.ranks
        most = [needed.images(size) and largest_batch(step, needed.images(size)) for size in memory]
        kept = "recomputed" if case.checkpoint_activations else "kept"
        cells = ["-" if number == 0 else str(number) for number in most]
        table.add_row(name(case), kept, str(case.window_batch or "all"), *cells)
    return table


def _gib(nbytes: float) -> str:
    return f"{nbytes / GIB:.2f}" if nbytes >= 0.005 * GIB or not nbytes else "< 0.01"
