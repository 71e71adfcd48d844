"""Losses at recorded points; criterion cases: costs, matches, losses and gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from odise_pl.losses.criterion import LossWeights, MaskLosses, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher, Match
from odise_pl.models.ops.points import Uniform, uncertain_points
from odise_pl.structures import MaskPredictions, Targets
from tests.parity.checks import LOSS, Check, compare, equal, number, worst
from tests.parity.records import Case, RecordError

TERMS = {"loss_ce": "classification", "loss_mask": "mask", "loss_dice": "dice"}  # recorded name, our field
SEEDS = range(1000)  # candidates for the "seed" mode of records without a seed


def check_criterion(case: Case) -> list[Check]:
    """Costs, matches, losses and gradients of every recorded set of predictions, in every mode."""
    mark = "outputs/pred_masks"
    places = [name.removesuffix(mark) for name in case.tensors if name.endswith(mark)]
    return [check for place in places for check in _place_checks(place, case.under(place))]


def _place_checks(place: str, case: Case) -> list[Check]:
    modes = dict.fromkeys(m[1] for m in map(re.compile(r"losses_unweighted_(\w+)/").match, case.facts) if m)
    checks = [*_cost_checks(place, case), *_point_checks(place, case)]
    for mode in modes:
        checks += _mode_checks(f"{place}{mode}", case, mode)
    return checks


def _predictions(case: Case) -> list[MaskPredictions]:
    """The last prediction, then the earlier ones: the order in which the record's losses were computed."""
    earlier = len(case.numbered("outputs/aux_outputs", "/pred_masks"))
    places = ["outputs/", *(f"outputs/aux_outputs/{i}/" for i in range(earlier))]
    return [_prediction(case.under(place)) for place in places]


def _prediction(part: Case) -> MaskPredictions:
    logits, masks = (part.tensor(name).clone().requires_grad_() for name in ("pred_logits", "pred_masks"))
    return MaskPredictions(logits, masks, torch.zeros(()), torch.zeros(()))


def _targets(case: Case) -> list[Targets]:
    masks = case.numbered("targets", "/masks")
    return [Targets(labels, masks[i].bool()) for i, labels in case.numbered("targets", "/labels").items()]


def _cost_checks(place: str, case: Case) -> list[Check]:
    points, output = case.tensors.get("points_matcher"), _predictions(case)[0]
    if points is None:
        return []
    matcher, pairs = RecordingMatcher(points.shape[1]), []
    for i, target in enumerate(_targets(case)):
        own = matcher.costs(output.class_logits[i], output.mask_logits[i], target, always(points))
        for name, field in (("class", "classification"), ("mask", "mask"), ("dice", "dice")):
            recorded = case.tensors.get(f"cost_fixed/{i}/cost_{name}")
            pairs.append((f"{name} of image {i}", getattr(own, field), recorded))
    return worst(f"{place}costs", pairs)


def _point_checks(place: str, case: Case) -> list[Check]:
    part = case.under("uncertain_points_rand/").tensors
    if not part.keys() >= {"logits", "coords"}:
        return []
    own = uncertain_points(part["logits"], part["coords"].shape[1], _seeded)
    # topk does not define an order
    return compare(f"{place}uncertain points", _sorted(own), _sorted(part["coords"]))


def _sorted(points: Tensor) -> Tensor:
    keys = (points[..., 0].double() + 2 * points[..., 1].double()).argsort(dim=1)
    return points.gather(1, keys.unsqueeze(2).expand_as(points))


def _mode_checks(stage: str, case: Case, mode: str) -> list[Check]:
    criterion, matcher, points = _criterion(case, mode)
    outputs, targets = _predictions(case), _targets(case)
    weighted = criterion(outputs, targets, points, range(len(targets)))
    total = torch.stack([term for loss in weighted for term in vars(loss).values()]).sum()
    total.backward()
    checks = _loss_checks(stage, case.under(f"losses_unweighted_{mode}/"), weighted)
    recorded = case.facts.get(f"total_weighted_{mode}")
    if recorded is not None:
        checks += compare(f"{stage}: total", total, number(recorded), LOSS)
    matches = case.under(f"indices_{mode}/")
    if matches.tensors:
        pairs = [(matches.tensor(f"{i}/0"), matches.tensor(f"{i}/1")) for i in range(len(targets))]
        checks.append(match_check(f"{stage}: matches", matcher.matches[:1], [pairs]))
    for name, own in (("pred_logits", outputs[0].class_logits), ("pred_masks", outputs[0].mask_logits)):
        gradient = own.grad if own.grad is not None else torch.zeros_like(own)
        held = case.tensors.get(f"grad_{mode}/{name}")
        checks += compare(f"{stage}: gradient of {name}", gradient, held)
    return checks


def _criterion(case: Case, mode: str) -> tuple[SetCriterion, RecordingMatcher, Uniform]:
    """The published losses in a mode of the records, and their source of points.

    ``fixed`` uses the recorded points for all masks. The others use importance sampling: ``rand`` seeds every
    draw by its size, ``seed`` seeds once, before the matcher of the last prediction.
    """
    if mode == "fixed":
        return fixed_criterion(case.tensor("points_matcher"), case.tensor("points_criterion"))
    if mode not in ("rand", "seed"):
        raise RecordError(f"unknown mode '{mode}' of the losses")
    matcher = RecordingMatcher(_count(case, "matcher"))
    criterion = SetCriterion(matcher, LossWeights(), num_points=_count(case, "criterion"))
    return criterion, matcher, _seeded if mode == "rand" else _drawn(_seed(case, criterion))


def _count(case: Case, name: str) -> int:
    """Number of points per mask."""
    for kind in (f"points_{name}", "points_matcher", "points_criterion", "uncertain_points_rand/coords"):
        if kind in case.tensors:
            return case.tensors[kind].shape[1]
    raise RecordError(f"its record has no 'points_{name}'")


def _seeded(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(1234 + math.prod(size)))


def _drawn(seed: int) -> Uniform:
    """Random numbers as after ``torch.manual_seed(seed)``."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *size: torch.rand(*size, generator=generator)


@torch.no_grad()
def _seed(case: Case, criterion: SetCriterion) -> int:
    """The recorded seed, else the first that reproduces the mask loss, else 0."""
    wanted = case.facts.get("losses_unweighted_seed/loss_mask")
    if "seed" in case.facts or wanted is None:
        return int(case.facts.get("seed", 0))
    last, targets = _predictions(case)[:1], _targets(case)
    for seed in SEEDS:
        (loss,) = criterion(last, targets, _drawn(seed), range(len(targets)))
        if abs(float(loss.mask) / LossWeights().mask - wanted) <= LOSS.value * wanted:
            return seed
    return 0


def _loss_checks(stage: str, recorded: Case, weighted: Sequence[MaskLosses]) -> list[Check]:
    weights, last = LossWeights(), len(weighted) - 1
    order = [last, *range(last)]  # of computation
    pairs = [
        (name, (getattr(loss, field) / getattr(weights, field)).double(), number(recorded.facts[name]))
        for index, loss in zip(order, weighted, strict=True)
        for kind, field in TERMS.items()
        if (name := kind + suffix(index, last)) in recorded.facts
    ]
    return worst(f"{stage}: losses", pairs, LOSS)


class RecordingMatcher(HungarianMatcher):
    """A matcher that records its ``matches`` and compares masks at ``points`` [1, P, 2], if given."""

    def __init__(self, num_points: int, points: Tensor | None = None) -> None:
        super().__init__(num_points=num_points)
        self.points, self.matches = points, list[list[Match]]()

    def __call__(
        self,
        predictions: MaskPredictions,
        targets: Sequence[Targets],
        uniform: Uniform,
        image_ids: Sequence[int],
    ) -> list[Match]:
        source = uniform if self.points is None else always(self.points)
        self.matches.append(super().__call__(predictions, targets, source, image_ids))
        return self.matches[-1]


def always(points: Tensor) -> Uniform:
    """Returns the same points [1, P, 2] for all masks."""
    return lambda *size: points.expand(size[0], -1, -1)[:, : size[1]]


def fixed_criterion(
    matcher_points: Tensor, loss_points: Tensor
) -> tuple[SetCriterion, RecordingMatcher, Uniform]:
    """The losses at given points, their matcher and their source of points."""
    matcher = RecordingMatcher(matcher_points.shape[1], matcher_points)
    criterion = SetCriterion(
        matcher, LossWeights(), num_points=loss_points.shape[1], oversample=1.0, importance=0.0
    )
    return criterion, matcher, always(loss_points)


def suffix(index: int, last: int) -> str:
    """Suffix of the recorded losses of prediction ``index``."""
    return "" if index == last else f"_{index}"


def match_check(
    stage: str, own: Sequence[Sequence[Match]], recorded: Sequence[Sequence[tuple[Tensor, Tensor]]]
) -> Check:
    """Compare matches of every prediction and image with recorded ones."""
    wrong = total = 0
    for ours, theirs in zip(own, recorded, strict=True):
        for match, (queries, targets) in zip(ours, theirs, strict=True):
            total += len(queries)
            same = match.queries.tolist() == queries.tolist() and match.targets.tolist() == targets.tolist()
            wrong += 0 if same else max(len(queries), 1)
    return equal(stage, wrong, total, f"{total} pairs")
