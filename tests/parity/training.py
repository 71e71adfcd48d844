"""Training cases: losses, matches and gradients of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.losses.grounding import GroundingCriterion
from odise_pl.models.odise import Odise, pad_images
from odise_pl.structures import MaskPredictions, Targets
from tests.parity.checks import (
    FLIPPED_STEP,
    LOSS,
    STEP,
    Check,
    StepTolerance,
    Tolerance,
    compare,
    equal,
    furthest,
    number,
    worst,
)
from tests.parity.criterion import TERMS, RecordingMatcher, fixed_criterion, match_check, suffix
from tests.parity.models import model_of, official_parameters, vocabulary
from tests.parity.predictions import output_place, prediction_checks, use_recorded_thresholds
from tests.parity.records import Case

GROUNDING = "loss_mask_word"
NOISE = 1e-7  # of the largest gradient norm; differences of smaller gradients are relative to it


@dataclass(frozen=True)
class Losses:
    """Weighted losses by recorded name, in order of the predictions, and the matcher with its matches."""

    terms: Mapping[str, Tensor]
    matcher: RecordingMatcher

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.terms.values())).sum()


class Training:
    """A training case with its network and inputs."""

    def __init__(self, case: Case, model: Odise) -> None:
        self.case, self.model = case, model.train()
        self.images, _ = pad_images(case.images())
        # as published, the first image decides whether the batch is annotated
        self.labelled = any(f"inputs/0/gt_{name}" in case.tensors for name in ("masks", "classes"))
        self.caption = case.fact("model") == "caption"
        self.targets = [self._targets(i) for i in range(len(self.images))]
        words = case.facts.get("words") if self.caption else None
        self.words = [texts or [] for texts in words or []]
        # the caption model trains without class names
        labels = case.facts.get("train_labels", ["object"]) if self.caption else case.fact("train_labels")
        self.classes = model.encode_classes(vocabulary(labels).labels)

    def _targets(self, index: int) -> Targets:
        tensors, (height, width) = self.case.tensors, self.images.shape[-2:]
        nothing = torch.zeros(0, height, width)  # an image without objects may have no entry
        masks = (tensors.get(f"inputs/{index}/gt_masks", nothing) if self.labelled else nothing).bool()
        labels = self.case.tensor(f"inputs/{index}/gt_classes") if len(masks) else torch.zeros(0).long()
        padded = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
        # all objects are one class in the caption model
        return Targets(torch.zeros_like(labels) if self.caption else labels, padded)

    def losses(self, outputs: Sequence[MaskPredictions]) -> Losses:
        """All losses at the recorded points; without annotations, class and mask losses are 0."""
        held = [
            self.case.tensor(f"points_{name}") if self.labelled else torch.zeros(1, 1, 2)
            for name in ("matcher", "criterion")
        ]
        criterion, matcher, points = fixed_criterion(*held)
        ids, last = range(len(self.images)), len(outputs) - 1
        labelled = [self.labelled] * len(self.images)
        terms = {
            name + suffix(i, last): getattr(losses, field)
            for i, losses in enumerate(criterion(outputs, self.targets, points, ids, labelled))
            for name, field in TERMS.items()
        }
        if self.words:
            grounding = GroundingCriterion()(outputs, *self.model.embed_words(self.words), ids)
            terms |= {GROUNDING + suffix(i, last): loss for i, loss in enumerate(grounding)}
        return Losses(terms, matcher)

    def step(self) -> tuple[list[MaskPredictions], Losses]:
        outputs = self.model(self.images, self.classes)
        losses = self.losses(outputs)
        losses.total.backward()
        return outputs, losses

    def recorded_outputs(self) -> list[MaskPredictions] | None:
        """Recorded predictions with class logits from recorded embeddings; None if one is missing."""
        layers = self.model.mask_decoder.layers
        assert isinstance(layers, nn.ModuleList)
        last = len(layers)
        outputs = []
        for i in range(last + 1):
            part = self.case.under(output_place(i, last)).tensors
            if not part.keys() >= {"pred_masks", "mask_embed", "logit_scale", "pred_logits"}:
                return None
            embed, scale, logits = part["mask_embed"], part["logit_scale"], part["pred_logits"]
            if not self.caption:
                text = self.classes
                logits = self.model.text_projection(embed, text.embeddings, text.counts, scale)
            outputs.append(MaskPredictions(logits, part["pred_masks"], embed, scale))
        return outputs

    def recorded_matches(self, count: int) -> list[list[tuple[Tensor, Tensor]]] | None:
        """Recorded (queries, targets) by prediction and image; None if some are missing."""
        if not self.labelled:
            return None
        places = [f"rec/matcher.indices/{call}/" for call in [*range(1, count), 0]]  # the last comes first
        if not all(self.case.under(place).tensors for place in places):
            return None
        return [[self._pairs(f"{place}{b}", b) for b in range(len(self.images))] for place in places]

    def _pairs(self, place: str, image: int) -> tuple[Tensor, Tensor]:
        if not len(self.targets[image].labels):  # without objects there may be no entry
            return torch.zeros(0).long(), torch.zeros(0).long()
        return self.case.tensor(f"{place}/0"), self.case.tensor(f"{place}/1")


def check_training(case: Case, weights: Path | None) -> list[Check]:
    """All checks of a training case."""
    run = Training(case, model_of(case, weights))
    tolerance = STEP if use_recorded_thresholds(run.model, case.tensors) else FLIPPED_STEP
    with torch.no_grad():
        checks = _recorded_checks(run)
    outputs, losses = run.step()
    objects = "class_logits" if run.caption else ""
    checks += prediction_checks("end to end", outputs, case.tensors, tolerance.outputs, objects)
    checks += _loss_checks(run, losses, "end to end", tolerance.loss)
    return checks + _gradient_checks(run, tolerance)


def _recorded_checks(run: Training) -> list[Check]:
    """Texts, and losses of recorded predictions."""
    held, projection = run.case.tensors, run.model.text_projection
    texts = projection.proj(run.classes.embeddings)
    checks = compare("texts", texts, held.get("rec/category_head/0/text_embed"))
    if projection.null_embed is not None:
        null = projection.proj(projection.null_embed)
        checks += compare("no-object text", null, held.get("rec/category_head/0/null_embed"))
    recorded = held.get("rec/word_head/0/word_embed")
    if run.words and recorded is not None:
        words, valid = run.model.embed_words(run.words)
        same = recorded.shape == words.shape
        checks += compare("words", words[valid] if same else words, recorded[valid] if same else recorded)
    outputs = run.recorded_outputs()
    if outputs is None:
        return checks
    return checks + _loss_checks(run, run.losses(outputs), "recorded predictions", LOSS)


def _loss_checks(run: Training, losses: Losses, stage: str, tolerance: Tolerance) -> list[Check]:
    recorded = run.case.under("losses/").facts
    # a loss of 0 may be absent
    odd = recorded.keys() ^ {name for name, term in losses.terms.items() if name in recorded or term}
    checks = [equal(f"{stage}: names of losses", len(odd), len(recorded), ", ".join(sorted(odd)))]
    for kind in (*TERMS, GROUNDING):
        pairs = [
            (name, term.double(), number(recorded[name]))
            for name, term in losses.terms.items()
            if name in recorded and name.rstrip("0123456789").rstrip("_") == kind
        ]
        checks += worst(f"{stage}: {kind}", pairs, tolerance)
    if "total" in run.case.facts:
        checks += compare(f"{stage}: total", losses.total, number(run.case.facts["total"]), tolerance)
    matches = run.recorded_matches(len(losses.matcher.matches))
    if matches is not None:
        checks.append(match_check(f"{stage}: matches", losses.matcher.matches, matches))
    return checks


def _gradient_checks(run: Training, tolerance: StepTolerance) -> list[Check]:
    """Norms and directions of gradients; single elements are not reproducible."""
    own = official_parameters(run.model, run.case.fact("model"))
    found = {name: _gradient(parameter).double() for name, parameter in own.items()}
    held = {name: x.double() for name, x in run.case.under("grads/").tensors.items()}
    norms = {name: float(x.norm()) for name, x in held.items()}
    norms |= {name: float(x) for name, x in run.case.under("grad_norm/").facts.items()}
    unknown = sorted(norms.keys() - found.keys())
    least = max(NOISE * max(norms.values(), default=0.0), 1e-300)
    errors = {
        name: abs(float(found[name].norm()) - x) / max(x, least) for name, x in norms.items() if name in found
    }
    turns = {
        name: 1 - float(F.cosine_similarity(found[name].flatten(), x.flatten(), dim=0, eps=1e-300))
        for name, x in held.items()
        if name in found and norms[name] > least
    }
    return [
        equal("gradients: names", len(unknown), len(norms), ", ".join(unknown[:4])),
        *furthest("gradients: norms", errors, tolerance.norm),
        *furthest("gradients: directions (1 - cosine)", turns, tolerance.direction),
    ]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
