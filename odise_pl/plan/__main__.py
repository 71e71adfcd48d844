"""What a training run takes, before it is started: memory of every device, and what devices send each other.

``python -m odise_pl.plan devices=8 batch=2 precision=bf16-mixed memory=24`` sets the run on one device beside
DDP and FSDP on eight. Every ``GROUP=CHOICE`` and ``KEY=VALUE`` of train.py is understood. No weights, no data
and no GPU are needed: one step of the run is gone through on tensors that have no data.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from odise_pl.autosize import AUTO, PUBLISHED, largest_batch
from odise_pl.command_line import expand
from odise_pl.configuration import clear_errors, setting_problems
from odise_pl.errors import SettingError
from odise_pl.lightning_module import OdiseModule
from odise_pl.optimization import accumulation_steps
from odise_pl.plan.fitting import GIB, fits, need, remedy, rungs
from odise_pl.plan.report import Column, cost_table, device_table, name, setting
from odise_pl.plan.simulation import STRATEGIES, Case, StepCost, simulate
from odise_pl.vocabulary import load_vocabulary

DEVICES = 8  # at most, where the configuration leaves it open
SHORT = {"devices": "trainer.devices", "nodes": "trainer.num_nodes", "batch": "data.batch_size",
         "precision": "trainer.precision"}  # fmt: skip
PRECISIONS = ("bf16-mixed", "16-mixed", "32-true")
_SYNONYMS = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}
# Nothing is loaded, and nothing is written.
_NOTHING = ["backbone.weights=random", "clip.weights=random", "run=plan", "run_dir=plan"]


def configuration(arguments: Sequence[str], conf: Path) -> DictConfig:
    """What train.py would compose, with the short names of this command.

    Raises:
        SettingError: names the option that is wrong.
    """
    named = [
        SHORT.get(key, key) + equals + value for key, equals, value in (a.partition("=") for a in arguments)
    ]
    if not (conf / "train.yaml").is_file():
        raise SettingError(f"--conf {conf}: there is no train.yaml; name the project's folder conf")
    try:
        with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
            config = compose("train", [*expand(named, conf), *_NOTHING])
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingError(" ".join(str(error).split())) from error
    problems = [*setting_problems(config), *_problems(config)]
    if problems:
        raise SettingError("\n  - ".join(["cannot plan:", *problems]))
    return config


def _problems(config: DictConfig) -> list[str]:
    """What training knows how to handle and a plan does not."""
    problems = []
    for key in ("trainer.devices", "trainer.num_nodes"):
        value = OmegaConf.select(config, key)
        if value != AUTO and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            problems.append(f"{key}={value} must be a whole number, 1 or more")
    if precision_of(config) not in PRECISIONS:
        problems.append(
            f"trainer.precision={config.trainer.precision}: choose one of {', '.join(PRECISIONS)}"
        )
    if config.captioner.get("on_the_fly"):
        problems.append(
            "captioner.on_the_fly=true: only BLIP's weights say how large it is; plan without, and add them"
        )
    return problems


def precision_of(config: DictConfig) -> str:
    """Lightning's name of it."""
    return _SYNONYMS.get(str(config.trainer.precision), str(config.trainer.precision))


def module_of(config: DictConfig) -> OdiseModule:
    """What train.py would train, with random weights and COCO's classes."""
    return OdiseModule(
        instantiate(config.model),
        instantiate(config.criterion),
        instantiate(config.optimizer),
        load_vocabulary("coco_panoptic"),
        {},
        config.global_batch,
        grounding=instantiate(config.grounding),
        words=config.data.words,
    )


def case_of(config: DictConfig, strategy: str) -> Case:
    """How train.py would train with a strategy.

    Raises:
        SettingError: devices, batch and global batch do not fit each other.
    """
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    batch, windows = config.data.batch_size, config.backbone.window_batch
    if strategy == "single":
        devices = nodes = 1
    elif devices == AUTO or devices * nodes == 1:
        together = nodes * (1 if batch == AUTO else batch)
        devices = largest_batch(max(1, config.global_batch // together), DEVICES)
    images = max(1, config.global_batch // (devices * nodes))
    batch = largest_batch(images, PUBLISHED) if batch == AUTO else batch
    return Case(
        strategy,
        devices,
        nodes,
        bool(OmegaConf.select(config, "trainer.strategy.across_nodes") or False),
        precision_of(config),
        batch,
        0 if windows == AUTO else windows,
        config.data.image_size,
        accumulation_steps(config.global_batch, batch, devices * nodes),
        config.backbone.checkpoint_activations,
        config.trainer.accelerator != "cpu",
    )


def plan(config: DictConfig, memory: Sequence[float]) -> None:
    """Print the costs of all strategies, or, for several sizes of memory, how many images fit.

    Args:
        config: from :func:`configuration`.
        memory: of a device, in GiB.
    """
    known = [s for s in STRATEGIES if s != "fsdp" or precision_of(config) != "16-mixed"]
    cases = [case_of(config, strategy) for strategy in known]
    cost = cache(partial(simulate, partial(module_of, config)))
    console = Console(width=None if sys.stdout.isatty() else 200)
    if len(memory) > 1:
        # DDP takes what one device does, and its buckets
        alike = [case for case in cases if case.strategy != "ddp"]
        needs = [(rung, need(rung, _bytes(cost))) for case in alike for rung in rungs(case)]
        console.print(device_table(needs, config.global_batch, memory))
        return
    columns = [Column(case, cost(case)) for case in cases]
    console.print(cost_table(columns, memory[0] if memory else None))
    for case in cases:
        for line in _advice(case, config.global_batch, memory, cost):
            console.print(line)


def _bytes(cost: Callable[[Case], StepCost]) -> Callable[[Case], int]:
    return lambda case: cost(case).memory.total


def _advice(
    case: Case, global_batch: int, memory: Sequence[float], cost: Callable[[Case], StepCost]
) -> list[str]:
    """What to change where a case does not fit."""
    if not memory or fits(cost(case).memory.total, memory[0]):
        return []
    found = remedy(case, global_batch // case.ranks, memory[0], _bytes(cost))
    if found is None:
        return [
            f"{name(case)}: nothing helps but a smaller data.image_size, or more devices with trainer=fsdp"
        ]
    total = cost(found).memory.total / GIB
    return [f"{name(case)} fits with {setting(found)} ({total:.2f} GiB)"]


def run(options: argparse.Namespace) -> None:
    """Plan, and print."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # there is nothing to compute
    own = [a for a in options.settings if a.startswith("memory=")]
    memory = sizes(own[-1].partition("=")[2]) if own else ()
    plan(configuration([a for a in options.settings if a not in own], options.conf), memory)


def sizes(text: str) -> tuple[float, ...]:
    """``24`` or ``[80,24,12]``: GiB of a device.

    Raises:
        SettingError: something else.
    """
    try:
        found = tuple(float(part) for part in text.strip("[]").split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < size < math.inf for size in found):
        raise SettingError(f"memory={text} must be the GiB of a device, as 24, or a list, as [80,24,12]")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m odise_pl.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY=VALUE",
        help="devices, nodes, batch and precision; memory=GiB of a device says what fits, and a list of them "
        "makes a table; anything that train.py takes",
    )
    parser.add_argument("--conf", type=Path, default=Path("conf"), help="configuration folder (default conf)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, or ends the program with what is wrong."""
    with clear_errors():
        run(_parser().parse_args(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
