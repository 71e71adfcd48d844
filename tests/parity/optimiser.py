"""Optimiser cases: weight decay per parameter, and the losses of three steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odise_pl.checkpoints.io import load_trainable_state, trainable_state
from odise_pl.models.odise import Odise
from odise_pl.training.optimization import OptimizerSettings, build_optimizer
from tests.parity.checks import GRADIENT, STAGE, Check, equal, stacked, worst
from tests.parity.models import WeightFiles, model_of
from tests.parity.records import Case, RecordError
from tests.parity.training import Losses, Training, official_parameters, step


def check_optimiser(case: Case, cases: Sequence[Case], files: WeightFiles) -> list[Check]:
    """Groups, and three steps on the inputs of the training case that the record goes on from.

    Args:
        case: the optimiser's record.
        cases: all cases of the folder.
        files: of weights.
    """
    source = _inputs_of(case, cases)
    model = model_of(case, files, _window(source))
    before = {name: value.clone() for name, value in trainable_state(model).items()}
    try:
        return _steps(case, Training(source, model))
    finally:
        load_trainable_state(model, before, "the state before the steps")  # the network is shared


def _window(source: Case) -> int:
    size: Any = source.fact("backbone_in_size")
    return int(size if isinstance(size, int) else size[0])


def _inputs_of(case: Case, cases: Sequence[Case]) -> Case:
    """The case itself, or the training case whose loss is the first one of the record."""
    if "inputs/0/image" in case.tensors:
        return case
    for other in cases:
        total = other.facts.get("total")
        alike = all(other.facts.get(key) == case.facts.get(key) for key in ("model", "steps"))
        if alike and isinstance(total, float) and abs(total - case.facts["total"][0]) <= STAGE * total:
            return other
    raise RecordError(
        f"case {case.name}: no training case in {case.folder} has its model, steps and first loss "
        f"({case.facts['total'][0]}); put that case beside it"
    )


def _steps(case: Case, run: Training) -> list[Check]:
    model, settings = run.model, OptimizerSettings()
    optimizer = build_optimizer(model, settings, settings.reference_batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    totals, norms = list[float](), list[float]()
    for number in range(len(case.facts["total"])):
        optimizer.zero_grad()
        losses = _step(run, first=number == 0)
        norms.append(float(nn.utils.clip_grad_norm_(trained, settings.clip_norm)))
        totals.append(float(losses.total.detach()))
        optimizer.step()
    checks = [_group_check(case, model, optimizer)]
    checks += worst("losses of the steps", _by_step(totals, case.facts["total"]), STAGE)
    recorded = case.facts.get("grad_norm")
    return checks + (worst("gradient norms", _by_step(norms, recorded), GRADIENT) if recorded else [])


def _step(run: Training, first: bool) -> Losses:
    """Forward and backward; the record of the training case is of the first step only."""
    if first:
        return step(run)[1]
    run.decoder.reset()
    losses = run.losses(run.forward(), run.word_embeddings() if run.words else None)
    losses.total.backward()
    return losses


def _by_step(ours: Sequence[float], recorded: Sequence[float]) -> list[tuple[str, Tensor, Tensor]]:
    pairs = zip(stacked(ours), stacked(recorded), strict=True)
    return [(f"step {i + 1}", own, theirs) for i, (own, theirs) in enumerate(pairs)]


def _group_check(case: Case, model: Odise, optimizer: torch.optim.Optimizer) -> Check:
    decay = {id(p): float(g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    own = {n: decay.get(id(p)) for n, p in official_parameters(model, case.fact("model")).items()}
    recorded = {
        name.removeprefix("weight_decay/"): value
        for name, value in case.facts.items()
        if name.startswith("weight_decay/")
    }
    wrong = sorted(name for name, value in recorded.items() if own.get(name) != value)
    note = f"{len(recorded)} parameters" if not wrong else ", ".join(wrong[:4])
    return equal("weight decay", len(wrong) + len(own.keys() - recorded.keys()), len(recorded), note)
