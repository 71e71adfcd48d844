"""Optimiser cases: weight decay per parameter, and the losses of three steps."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from odise_pl.models.odise import Odise
from odise_pl.training.optimization import OptimizerSettings, build_optimizer
from tests.parity.checks import LATER_STEPS, STEP, Check, Tolerance, equal, number, worst
from tests.parity.models import input_side, model_of, official_parameters
from tests.parity.predictions import use_recorded_thresholds
from tests.parity.records import Case, RecordError, read_cases
from tests.parity.training import Training


def check_optimiser(case: Case, weights: Path | None) -> list[Check]:
    """Parameter groups, and all steps on the inputs of the record's training case."""
    source = _inputs_of(case)
    model = deepcopy(model_of(case, weights, input_side(source)))  # it is trained, and other cases share it
    run, settings = Training(source, model), OptimizerSettings()
    optimizer = build_optimizer(model, settings, settings.reference_batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    totals, norms = list[float](), list[float]()
    for step in range(len(case.fact("total"))):
        # the training case records only the first step
        use_recorded_thresholds(model, source.tensors if step == 0 else {})
        optimizer.zero_grad()
        _, losses = run.step()
        norms.append(float(nn.utils.clip_grad_norm_(trained, settings.clip_norm)))
        totals.append(float(losses.total.detach()))
        optimizer.step()
    return [
        _group_check(case, model, optimizer),
        *_by_step("losses of the steps", totals, case.fact("total"), LATER_STEPS),
        *_by_step("gradient norms", norms, case.facts.get("grad_norm", []), Tolerance(STEP.norm)),
    ]


def _inputs_of(case: Case) -> Case:
    """The case itself, or the training case beside it with the record's first loss."""
    if "inputs/0/image" in case.tensors:
        return case
    first = case.fact("total")[0]
    for other in read_cases(case.folder):
        total = other.facts.get("total")
        alike = all(other.facts.get(key) == case.facts.get(key) for key in ("model", "steps"))
        if alike and isinstance(total, float) and abs(total - first) <= 1e-4 * total:
            return other
    raise RecordError(
        f"no training case in {case.folder} has its model, steps and first loss "
        f"({first}); copy that case into the folder"
    )


def _by_step(
    stage: str, ours: Sequence[float], recorded: Sequence[float], tolerance: Tolerance
) -> list[Check]:
    pairs = [(f"step {i + 1}", number(ours[i]), number(x)) for i, x in enumerate(recorded)]
    return worst(stage, pairs, tolerance)


def _group_check(case: Case, model: Odise, optimizer: torch.optim.Optimizer) -> Check:
    decay = {id(p): float(g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    own = {n: decay.get(id(p)) for n, p in official_parameters(model, case.fact("model")).items()}
    recorded = case.under("weight_decay/").facts
    wrong = sorted(name for name in own.keys() | recorded.keys() if own.get(name) != recorded.get(name))
    note = ", ".join(wrong[:4]) if wrong else f"{len(recorded)} parameters"
    return equal("weight decay", len(wrong), len(recorded), note)
