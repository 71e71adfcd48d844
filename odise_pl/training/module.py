"""Training and validation steps, logging, optimiser."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from odise_pl.checkpoints.files import PREFIX
from odise_pl.checkpoints.weights import load_trainable_state, trainable_parameters
from odise_pl.distributed.strategy import place_all
from odise_pl.evaluation.predictors import NetworkPredictor
from odise_pl.losses.contrast import ContrastLosses
from odise_pl.losses.criterion import MaskLosses, SetCriterion
from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.grounding import GroundingCriterion
from odise_pl.metrics.suite import EvaluationResult, SegmentationMetrics
from odise_pl.models.classifiers.text import TextClasses
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.odise import Odise
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import Batch, Targets
from odise_pl.training.nonfinite import StepSkipper
from odise_pl.training.optimization import OptimizerSettings, build_optimizer, learning_rate_factor
from odise_pl.vocabulary import MEASURES, Vocabulary


@dataclass(frozen=True)
class StepLosses:
    """Weighted losses of every decoder output, in order; ``grounding`` is empty for the label model."""

    masks: list[MaskLosses]
    grounding: list[Tensor]

    @property
    def total(self) -> Tensor:
        """Their sum."""
        terms = [term for loss in self.masks for term in vars(loss).values()]
        return torch.stack([*terms, *self.grounding]).sum()

    def named(self) -> dict[str, Tensor]:
        """Detached, by name; names of the last output carry no number."""
        last = len(self.masks) - 1
        values: dict[str, Tensor] = {}
        for layer, loss in enumerate(self.masks):
            terms = vars(loss) | ({"grounding": self.grounding[layer]} if self.grounding else {})
            suffix = "" if layer == last else f"_{layer}"
            values |= {f"{name}{suffix}": term.detach() for name, term in terms.items()}
        return values


class OdiseModule(lightning.LightningModule):
    """The network, its losses and its metrics, as Lightning trains and validates them.

    Args:
        model: the network.
        criterion: the losses.
        optimizer: its settings.
        vocabulary: classes of the training labels.
        eval_vocabularies: classes of each evaluation set, in the order of its data loaders.
        global_batch: images per optimiser step over all devices.
        seed: of the random points, which depend on nothing else but the step and the rank.
        record: plain values that describe the run in its checkpoints.
        grounding: loss of the words; the caption model trains with it, the label model without.
        words: places for words per image, the same on every rank.
        measures: what is measured on each evaluation set, in the same order; by default everything.
    """

    def __init__(
        self,
        model: Odise,
        criterion: SetCriterion,
        optimizer: OptimizerSettings,
        vocabulary: Vocabulary,
        eval_vocabularies: Mapping[str, Vocabulary],
        global_batch: int,
        seed: int = 0,
        record: Mapping[str, Any] | None = None,
        grounding: GroundingCriterion | None = None,
        words: int = 0,
        measures: Sequence[Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.optimizer_settings = model, criterion, optimizer
        self.grounding, self.words = grounding, words
        self.vocabulary, self.eval_vocabularies = vocabulary, dict(eval_vocabularies)
        self.global_batch, self.seed, self.record = global_batch, seed, dict(record or {})
        self.strict_loading = False  # frozen weights are missing in checkpoints; see on_load_checkpoint
        self.results: dict[str, EvaluationResult] = {}
        self.measured_at = -1  # the step that the results are of
        self.metrics = [
            SegmentationMetrics(v.isthing, v.names, v.overlap(vocabulary), measured)
            for v, measured in zip(
                self.eval_vocabularies.values(),
                measures or [MEASURES] * len(self.eval_vocabularies),
                strict=True,
            )
        ]
        self._skipped, self._steps = 0, StepSkipper()
        self._note_counters()
        self._training_classes: TextClasses | None = None
        # in no ModuleList: the network would be a part of each
        self._predictors = [NetworkPredictor(model, v, vocabulary) for v in self.eval_vocabularies.values()]

    def configure_model(self) -> None:
        place_all(self.model, self.trainer)

    # Training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the global random states, so that a resumed run draws the same."""
        number = self._entropy(batch_idx)
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch; NaN if a loss is not finite, and the step will be skipped."""
        losses = self.losses(batch, self.uniform(batch_idx))
        total = losses.total
        self._log_losses(losses, total, len(batch))
        self._log_samples(batch)
        return total

    def losses(self, batch: Batch, uniform: Uniform) -> StepLosses | ContrastLosses:
        """All losses of a batch, with random points from ``uniform``.

        Losses that are not finite are returned as they are: other ranks wait for their gradients.
        """
        words = self.training_classes(), batch.generated_captions
        outputs = self.model(batch.images, *words, batch.valid_sizes)
        targets, ids = batch.targets, batch.image_ids
        if not self.model.learns_classes:  # but objects
            targets = tuple(Targets(torch.zeros_like(t.labels), t.masks) for t in targets)
        try:
            masks = self.criterion(outputs, targets, uniform, ids, batch.labelled)
        except NonFiniteError as error:
            masks = self._steps.non_finite_losses(error)
        if self.grounding is None:
            return StepLosses(masks, [])
        embeddings, valid = self.model.embed_words(batch.words, self.words)
        try:
            grounding = self.grounding(outputs, embeddings, valid, ids)
        except NonFiniteError as error:
            grounding = self._steps.non_finite_losses(error)
        return StepLosses(masks, grounding)

    def training_classes(self) -> TextClasses:
        """Embedded names of the training classes on the device that trains; again if a prompt learns."""
        known = self._training_classes
        if known is None or known.embeddings.device != self.device or self.model.clip.prompt is not None:
            known = self._training_classes = self.model.encode_names(self.vocabulary)
        return known

    def uniform(self, batch_idx: int) -> Uniform:
        """Random numbers that a resumed run draws again: they depend on seed, step and rank only."""
        generator = torch.Generator(self.device).manual_seed(self._entropy(batch_idx))
        return lambda *size: torch.rand(*size, generator=generator, device=self.device)

    def _entropy(self, batch_idx: int) -> int:
        sequence = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        return int(sequence.generate_state(1)[0])

    def _log_losses(self, losses: StepLosses | ContrastLosses, total: Tensor, images: int) -> None:
        terms = losses.named()
        logged = {f"train/loss_{name}": term for name, term in terms.items()}
        self.log_dict({"train/loss": total.detach()} | logged, batch_size=images)
        last = {name: term for name, term in terms.items() if not name[-1].isdigit()}
        self.log_dict({"loss": total.detach()} | last, prog_bar=True, logger=False, batch_size=images)

    def _log_samples(self, batch: Batch) -> None:
        self._skipped += len(batch.skipped)
        self.log("data/skipped", float(self._skipped), batch_size=len(batch), sync_dist=True, reduce_fx="sum")
        if self.grounding is not None:
            without = sum(not words for words in batch.words) / len(batch)
            self.log("data/without_words", without, batch_size=len(batch))

    def _note_counters(self) -> None:
        """Counters at the end of a step, for checkpoints: a resumed run repeats an unfinished step."""
        self._counters = {"skipped": self._skipped, **self._steps.state_dict()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.model, self.optimizer_settings, self.global_batch)
        total_steps = int(self.trainer.estimated_stepping_batches)
        factor = learning_rate_factor(self.optimizer_settings, total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip by the norm of all trainable gradients, and log it; skip a step whose norm is not finite."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.optimizer_settings.clip_norm)
        self._steps.skip_if_nonfinite(norm, trained, self.trainer.precision == "16-mixed")
        self.log("train/gradient_norm", norm)
        self.log("train/steps_skipped", float(self._steps.skipped))
        self._note_counters()

    # Evaluation

    def on_validation_start(self) -> None:
        """Prepare vocabularies again if training changes that."""
        for predictor in self._predictors if self.model.learns_names else ():
            predictor.forget()

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[NetworkPrediction]]:
        """Predict, score, and hand the predictions to the callbacks."""
        metrics = self.metrics[dataloader_idx]
        metrics.skip(len(batch.skipped))
        predictions = self._predictors[dataloader_idx](batch)  # of none, too: other ranks may wait for it
        if len(batch):
            metrics.update(predictions, [t for t in batch.truths if t is not None], batch.image_ids)
        return {"predictions": predictions}

    def on_validation_epoch_end(self) -> None:
        """Results of every set, over all ranks."""
        self.measured_at = self.trainer.global_step
        for name, metrics in zip(self.eval_vocabularies, self.metrics, strict=True):
            result = metrics.compute()
            metrics.reset()
            self.results[name] = result
            prefix = "val" if len(self.eval_vocabularies) == 1 else f"val/{name}"
            values = {key: 100 * value for key, value in result.scalars().items()}
            values["left_out"] = float(result.skipped)
            self.log_dict({f"{prefix}/{key}": value for key, value in values.items()}, sync_dist=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out; add what the run was trained on."""
        kept = {PREFIX + name for name in trainable_parameters(self.model)}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in kept}
        skipped = torch.tensor(self._counters["skipped"], device=self.device)
        on_all_ranks = int(self.trainer.strategy.reduce(skipped, reduce_op="sum"))
        checkpoint["odise"] = {
            "vocabulary": self.vocabulary.to_json(),
            "record": self.record,
            "counters": self._counters | {"skipped": on_all_ranks},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load every trained weight; Lightning itself does not insist on any."""
        state = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        load_trainable_state(self.model, state, str(self.trainer.ckpt_path or "the checkpoint"))
        counters = (checkpoint.get("odise") or {}).get("counters", {})  # earlier versions kept none
        self._skipped = counters.get("skipped", 0) if self.global_rank == 0 else 0  # rank 0 has those of all
        self._steps.load_state_dict(counters)
        self._note_counters()
