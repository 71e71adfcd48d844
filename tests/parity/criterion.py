"""Cases of the losses alone: costs, matches, losses and gradients of recorded predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from odise_pl.losses.criterion import LossWeights, MaskLosses, SetCriterion
from odise_pl.models.ops.points import Uniform, uncertain_points
from odise_pl.structures import MaskPredictions, Targets
from tests.parity.checks import LOSS, STAGE, Check, compare, stacked, worst
from tests.parity.points import TERMS, NotingMatcher, fixed_criterion, match_check, suffix
from tests.parity.records import Case, RecordError

SEEDS = range(1000)  # tried in turn for the "seed" mode of a record that does not name its seed


def check_criterion(case: Case) -> list[Check]:
    """Costs, matches, losses and gradients of every recorded set of predictions, in every mode."""
    places = [
        name.removesuffix("outputs/pred_masks")
        for name in case.tensors
        if name.endswith("outputs/pred_masks")
    ]
    return [check for place in places for check in _criterion_checks(case, place)]


def _criterion_checks(case: Case, place: str) -> list[Check]:
    pattern = re.compile(re.escape(place) + r"losses_unweighted_(\w+)/")
    modes = dict.fromkeys(m[1] for m in map(pattern.match, case.facts) if m)
    checks = [*_class_weight_checks(case, place), *_cost_checks(case, place), *_point_checks(case, place)]
    for mode in modes:
        checks += _mode_checks(case, place, mode)
    return checks


def _predictions(case: Case, place: str) -> list[MaskPredictions]:
    """The last prediction first, as the record's losses take them, then the earlier ones."""
    held = case.tensors
    prefixes = [f"{place}outputs/"]
    while f"{place}outputs/aux_outputs/{len(prefixes) - 1}/pred_masks" in held:
        prefixes.append(f"{place}outputs/aux_outputs/{len(prefixes) - 1}/")
    nothing = torch.zeros(())
    return [
        MaskPredictions(
            held[p + "pred_logits"].clone().requires_grad_(),
            held[p + "pred_masks"].clone().requires_grad_(),
            nothing,
            nothing,
        )
        for p in prefixes
    ]


def _targets(case: Case, place: str) -> list[Targets]:
    labels = case.numbered(f"{place}targets", "/labels")
    masks = case.numbered(f"{place}targets", "/masks")
    return [Targets(labels[i], masks[i].bool()) for i in labels]


def _class_weight_checks(case: Case, place: str) -> list[Check]:
    """The class weights of the cross-entropy, as the record's loss kept them."""
    recorded = case.tensors.get(f"{place}empty_weight")
    if recorded is None:
        return []
    own = torch.ones(len(recorded))
    own[-1] = SetCriterion(NotingMatcher(1), LossWeights(), num_points=1).no_object_weight
    return compare(f"{place}class weights", own, recorded)


def _seeded(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(1234 + math.prod(size)))


def _drawn(seed: int) -> Uniform:
    """Random numbers as the global generator gives them after ``torch.manual_seed(seed)``."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.rand(*size, generator=generator)


def _criterion(case: Case, place: str, mode: str) -> tuple[SetCriterion, NotingMatcher, Uniform]:
    """The published losses in a mode of the records, and their source of points.

    ``fixed`` takes the recorded points for all masks. The others keep the importance sampling: ``rand`` seeds
    every draw by its size, ``seed`` the global generator once, before the matcher of the last prediction.
    """
    if mode == "fixed":
        return fixed_criterion(*(case.tensor(f"{place}points_{n}") for n in ("matcher", "criterion")))
    if mode not in ("rand", "seed"):
        raise RecordError(f"case {case.name}: unknown mode '{mode}' of {place or 'the losses'}")
    counts = [_count(case, place, name) for name in ("matcher", "criterion")]
    matcher = NotingMatcher(counts[0])
    criterion = SetCriterion(matcher, LossWeights(), num_points=counts[1])
    return criterion, matcher, _seeded if mode == "rand" else _drawn(_seed(case, place, criterion))


def _count(case: Case, place: str, name: str) -> int:
    """Points of a mask: as many as are recorded of any kind."""
    kinds = (f"points_{name}", "points_matcher", "points_criterion", "uncertain_points_rand/coords")
    held = [case.tensors[place + kind] for kind in kinds if place + kind in case.tensors]
    if not held:
        raise RecordError(
            f"{case.name}: its record has no '{place}points_{name}', which says how many there are"
        )
    return held[0].shape[1]


@torch.no_grad()
def _seed(case: Case, place: str, criterion: SetCriterion) -> int:
    """The seed that the record names, else the first that gives its loss; 0 if none does."""
    named = case.facts.get(f"{place}seed", case.facts.get("seed"))
    wanted = case.facts.get(f"{place}losses_unweighted_seed/loss_mask")
    if named is not None or wanted is None:
        return int(named or 0)
    last, targets = _predictions(case, place)[:1], _targets(case, place)
    for seed in SEEDS:
        (loss,) = criterion(last, targets, _drawn(seed), range(len(targets)))
        if abs(float(loss.mask) / LossWeights().mask - wanted) <= LOSS * wanted:
            return seed
    return 0


def _mode_checks(case: Case, place: str, mode: str) -> list[Check]:
    criterion, matcher, points = _criterion(case, place, mode)
    outputs, targets = _predictions(case, place), _targets(case, place)
    weighted = criterion(outputs, targets, points, range(len(targets)))
    total = torch.stack([term for loss in weighted for term in vars(loss).values()]).sum()
    total.backward()
    stage = f"{place}{mode}"
    checks = _loss_checks(case, place, mode, weighted)
    recorded = case.facts.get(f"{place}total_weighted_{mode}")
    if recorded is not None:
        checks += compare(f"{stage}: total", total, stacked([recorded])[0], LOSS)
    held = {i: case.tensors.get(f"{place}indices_{mode}/{i}/0") for i in range(len(targets))}
    if all(x is not None for x in held.values()):
        pairs = [
            (case.tensors[f"{place}indices_{mode}/{i}/0"], case.tensors[f"{place}indices_{mode}/{i}/1"])
            for i in held
        ]
        checks.append(match_check(f"{stage}: matches", matcher.noted[:1], [pairs]))
    for name, own in (("pred_logits", outputs[0].class_logits), ("pred_masks", outputs[0].mask_logits)):
        gradient = own.grad if own.grad is not None else torch.zeros_like(own)
        checks += compare(
            f"{stage}: gradient of {name}", gradient, case.tensors.get(f"{place}grad_{mode}/{name}")
        )
    return checks


def _loss_checks(case: Case, place: str, mode: str, weighted: Sequence[MaskLosses]) -> list[Check]:
    weights, last = LossWeights(), len(weighted) - 1
    order = [last, *range(last)]  # predictions as they were computed
    prefix = f"{place}losses_unweighted_{mode}/"
    pairs = [
        (name, getattr(loss, field) / getattr(weights, field), stacked([case.facts[prefix + name]])[0])
        for index, loss in zip(order, weighted, strict=True)
        for kind, field in TERMS.items()
        if prefix + (name := kind + suffix(index, last)) in case.facts
    ]
    return worst(f"{place}{mode}: losses", pairs, LOSS)


def _cost_checks(case: Case, place: str) -> list[Check]:
    held, output = case.tensors, _predictions(case, place)[0]
    if f"{place}points_matcher" not in held:
        return []
    matcher = NotingMatcher(held[f"{place}points_matcher"].shape[1])
    pairs = []
    for i, target in enumerate(_targets(case, place)):
        own = matcher.costs(
            output.class_logits[i], output.mask_logits[i], target, lambda *_: held[f"{place}points_matcher"]
        )
        for name, field in (("class", "classification"), ("mask", "mask"), ("dice", "dice")):
            recorded = held.get(f"{place}cost_fixed/{i}/cost_{name}")
            if recorded is not None:
                pairs.append((f"{name} of image {i}", getattr(own, field), recorded))
    return worst(f"{place}costs", pairs, STAGE)


def _point_checks(case: Case, place: str) -> list[Check]:
    logits = case.tensors.get(f"{place}uncertain_points_rand/logits")
    coords = case.tensors.get(f"{place}uncertain_points_rand/coords")
    if logits is None or coords is None:
        return []
    own = uncertain_points(logits, coords.shape[1], _seeded)
    # topk leaves the order open
    return compare(f"{place}uncertain points", _sorted(own), _sorted(coords))


def _sorted(points: Tensor) -> Tensor:
    keys = (points[..., 0].double() + 2 * points[..., 1].double()).argsort(dim=1)
    return points.gather(1, keys.unsqueeze(2).expand_as(points))
