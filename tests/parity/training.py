"""Training cases: losses, matches and gradients of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odise_pl.checkpoints.io import trainable_names
from odise_pl.checkpoints.official_names import to_official
from odise_pl.losses.grounding import GroundingCriterion
from odise_pl.models.odise import Odise, TextClasses, pad_images
from odise_pl.structures import MaskPredictions, Targets
from tests.parity.checks import (
    DIRECTION,
    END_TO_END,
    GRADIENT,
    LOSS,
    Check,
    compare,
    equal,
    furthest,
    stacked,
    worst,
)
from tests.parity.decisions import DecidingMaskDecoder, threshold_check
from tests.parity.inputs import REC, output_place
from tests.parity.models import WeightFiles, flat_names, model_of
from tests.parity.points import TERMS, NotingMatcher, fixed_criterion, match_check, suffix
from tests.parity.records import Case

WORD_PROMPT = "a photo of a {}."
GROUNDING = "loss_mask_word"
NOISE = 1e-7  # of the largest gradient's norm: smaller ones are compared with this, not with themselves


@dataclass(frozen=True)
class Losses:
    """Weighted losses by their recorded names, in order of the predictions, and what the matcher did."""

    terms: Mapping[str, Tensor]
    matcher: NotingMatcher

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return torch.stack(list(self.terms.values())).sum()


class Training:
    """A training case with its network and inputs."""

    def __init__(self, case: Case, model: Odise) -> None:
        self.case, self.model = case, model.train()
        self.images, _ = pad_images(case.images())
        # the published rule: the first image says for the whole batch whether there are annotations
        self.labelled = any(f"inputs/0/gt_{name}" in case.tensors for name in ("masks", "classes"))
        self.targets = [self._targets(i) for i in range(len(self.images))]
        self.caption = case.fact("model") == "caption"
        words = [texts or [] for texts in case.facts.get("words") or []] if self.caption else []
        longest = max([1, *map(len, words)])
        # a place without a word counts for nothing
        self.words = [[*texts, *[""] * (longest - len(texts))] for texts in words]
        # the caption model trains without class names
        labels = case.facts.get("train_labels", ["object"]) if self.caption else case.fact("train_labels")
        self.classes = model.encode_classes(flat_names(labels))

    def _targets(self, index: int) -> Targets:
        tensors, (height, width) = self.case.tensors, self.images.shape[-2:]
        nothing = torch.zeros(0, height, width)  # an image without objects may have no entry
        masks = (tensors.get(f"inputs/{index}/gt_masks", nothing) if self.labelled else nothing).bool()
        labels = self.case.tensor(f"inputs/{index}/gt_classes") if len(masks) else torch.zeros(0).long()
        padded = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
        # the caption model knows objects only
        return Targets(torch.zeros_like(labels) if self.case.fact("model") == "caption" else labels, padded)

    @property
    def decoder(self) -> DecidingMaskDecoder:
        """The model's mask decoder."""
        assert isinstance(self.model.mask_decoder, DecidingMaskDecoder)
        return self.model.mask_decoder

    def word_embeddings(self) -> Tensor:
        """Projected words of every image: [B, W, D]."""
        texts: TextClasses = self.model.encode_classes(self.words, WORD_PROMPT)
        return self.model.text_projection.proj(texts.embeddings).unflatten(0, (len(self.words), -1))

    def forward(self) -> list[MaskPredictions]:
        """Predictions in training mode."""
        return self.model(self.images, self.classes)

    def losses(self, outputs: Sequence[MaskPredictions], words: Tensor | None) -> Losses:
        """All losses at the recorded points; without annotations, those of classes and masks are 0."""
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
        if words is not None:
            valid = torch.tensor([[bool(text) for text in texts] for texts in self.words])
            grounding = GroundingCriterion()(outputs, words, valid, ids)
            terms |= {GROUNDING + suffix(i, last): loss for i, loss in enumerate(grounding)}
        return Losses(terms, matcher)

    def recorded_outputs(self) -> list[MaskPredictions] | None:
        """Recorded predictions, with class logits made from recorded embeddings; None if one is missing."""
        last = len(self.model.mask_decoder.layers)
        outputs = []
        for i in range(last + 1):
            names = ("pred_masks", "mask_embed", "logit_scale", "pred_logits")
            held = [self.case.tensors.get(output_place(i, last) + name) for name in names]
            masks, embed, scale, logits = held
            if masks is None or embed is None or scale is None or logits is None:
                return None
            if not self.caption:
                logits = self.model.text_projection(
                    embed, self.classes.embeddings, self.classes.counts, scale
                )
            outputs.append(MaskPredictions(logits, masks, embed, scale))
        return outputs

    def recorded_matches(self, count: int) -> list[list[tuple[Tensor, Tensor]]] | None:
        """Recorded (queries, targets) by prediction and image; the record begins with the last prediction.

        None where one is not recorded, or nothing was matched.
        """
        held, found = self.case.tensors, []
        if not self.labelled:
            return None
        for call in [*range(1, count), 0]:
            place = f"{REC}matcher.indices/{call}"
            if not any(name.startswith(place + "/") for name in held):
                return None
            found.append([self._pairs(f"{place}/{b}", b) for b in range(len(self.images))])
        return found

    def _pairs(self, place: str, image: int) -> tuple[Tensor, Tensor]:
        if not len(self.targets[image].labels):  # without objects there are no pairs, and may be no entry
            return torch.zeros(0).long(), torch.zeros(0).long()
        return self.case.tensor(f"{place}/0"), self.case.tensor(f"{place}/1")


def check_training(case: Case, files: WeightFiles) -> list[Check]:
    """All checks of a training case."""
    run = Training(case, model_of(case, files))
    with torch.no_grad():
        checks = _recorded_checks(run)
    outputs, losses = step(run)
    checks += [threshold_check(run.decoder), *_output_checks(run, outputs)]
    checks += _loss_checks(run, losses, "end to end")
    return checks + _gradient_checks(run)


def step(run: Training) -> tuple[list[MaskPredictions], Losses]:
    """Forward and backward; close decisions of the mask decoder as in the record."""
    run.decoder.recorded = recorded_masks(run)
    outputs = run.forward()
    losses = run.losses(outputs, run.word_embeddings() if run.words else None)
    losses.total.backward()
    return outputs, losses


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def recorded_masks(run: Training) -> dict[int, Tensor]:
    """Recorded mask logits by number of the prediction."""
    last = len(run.model.mask_decoder.layers)
    places = {i: output_place(i, last) + "pred_masks" for i in range(last + 1)}
    return {i: run.case.tensors[place] for i, place in places.items() if place in run.case.tensors}


def _recorded_checks(run: Training) -> list[Check]:
    """Texts, and losses of recorded predictions."""
    held, model = run.case.tensors, run.model
    texts = model.text_projection.proj(run.classes.embeddings)
    checks = compare("texts", texts, held.get(REC + "category_head/0/text_embed"))
    null = model.text_projection.null_embed
    if null is not None:
        projected = model.text_projection.proj(null)
        checks += compare("no-object text", projected, held.get(REC + "category_head/0/null_embed"))
    words = run.word_embeddings() if run.words else None
    recorded = held.get(REC + "word_head/0/word_embed")
    if words is not None and recorded is not None:
        there = torch.tensor([[bool(text) for text in texts] for texts in run.words])
        shown = recorded if recorded.shape != words.shape else recorded[there]
        checks += compare("words", words if recorded.shape != words.shape else words[there], shown)
    outputs = run.recorded_outputs()
    if outputs is None:
        return checks
    return checks + _loss_checks(run, run.losses(outputs, words), "recorded predictions")


def _output_checks(run: Training, outputs: Sequence[MaskPredictions]) -> list[Check]:
    held, last = run.case.tensors, len(outputs) - 1
    checks: list[Check] = []
    for what, field, name in (
        ("masks", "mask_logits", "pred_masks"),
        ("mask embeddings", "mask_embed", "mask_embed"),
        *((("objects", "class_logits", "pred_logits"),) if run.caption else ()),
    ):
        pairs = [
            (f"output {i}", getattr(output, field), held[output_place(i, last) + name])
            for i, output in enumerate(outputs)
            if output_place(i, last) + name in held
        ]
        checks += worst(f"end to end: {what}", pairs, END_TO_END)
    return checks


def _loss_checks(run: Training, losses: Losses, stage: str) -> list[Check]:
    facts = run.case.facts
    recorded = {n.removeprefix("losses/"): v for n, v in facts.items() if n.startswith("losses/")}
    # a loss of 0 may be absent
    odd = recorded.keys() ^ {name for name, term in losses.terms.items() if name in recorded or term}
    checks = [equal(f"{stage}: names of losses", len(odd), len(recorded), ", ".join(sorted(odd)))]
    for kind in (*TERMS, GROUNDING):
        pairs = [
            (name, term, stacked([recorded[name]])[0])
            for name, term in losses.terms.items()
            if name in recorded and name.rstrip("0123456789").rstrip("_") == kind
        ]
        checks += worst(f"{stage}: {kind}", pairs, LOSS)
    if "total" in facts:
        checks += compare(f"{stage}: total", losses.total, stacked([facts["total"]])[0], LOSS)
    matches = run.recorded_matches(len(losses.matcher.noted))
    if matches is not None:
        checks.append(match_check(f"{stage}: matches", losses.matcher.noted, matches))
    return checks


def _gradient_checks(run: Training) -> list[Check]:
    """Norms and directions.

    Single elements depend on ReLUs and sampled pixels within rounding of their threshold: re-running the
    original moves them by up to 7 % of the largest, and norms by 0.1 %.
    """
    own = official_parameters(run.model, run.case.fact("model"))
    found = {name: _gradient(p).double() for name, p in own.items()}
    held = {n.removeprefix("grads/"): x for n, x in run.case.tensors.items() if n.startswith("grads/")}
    facts = run.case.facts
    norms = {n.removeprefix("grad_norm/"): float(x) for n, x in facts.items() if n.startswith("grad_norm/")}
    norms = {n: float(x.double().norm()) for n, x in held.items()} | norms
    unknown = sorted((held.keys() | norms.keys()) - found.keys())
    least = NOISE * max(norms.values(), default=0.0)
    turns = [
        (n, 1 - F.cosine_similarity(found[n].flatten(), x.double().flatten(), dim=0, eps=1e-300))
        for n, x in held.items()
        if n in found and norms[n] > least
    ]
    return [
        equal("gradients: names", len(unknown), len(norms), ", ".join(unknown[:4])),
        *furthest("gradients: norms", _norm_errors(found, norms, least), GRADIENT),
        *furthest("gradients: directions (1 - cosine)", [(n, float(turn)) for n, turn in turns], DIRECTION),
    ]


def _norm_errors(
    found: Mapping[str, Tensor], norms: Mapping[str, float], least: float
) -> list[tuple[str, float]]:
    """How far the norm of each gradient is off, relative to the record."""
    errors = {n: abs(float(found[n].norm()) - x) for n, x in norms.items() if n in found}
    return [(n, error / max(norms[n], least, 1e-300)) for n, error in errors.items()]


def official_parameters(model: nn.Module, supervision: str) -> dict[str, nn.Parameter]:
    """Trainable parameters by their official names."""
    own = dict(model.named_parameters())
    names = {name: to_official(name, supervision) for name in trainable_names(model)}
    return {official: own[name] for name, official in names.items() if official is not None}
