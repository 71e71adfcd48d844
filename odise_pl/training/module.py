"""Training and evaluation steps, logging, optimiser; the maths is in the rooms below."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from odise_pl.checkpoints.io import load_trainable_state, trainable_names
from odise_pl.distributed.sharding import place_all
from odise_pl.losses.criterion import MaskLosses, SetCriterion
from odise_pl.losses.errors import NonFiniteError
from odise_pl.losses.grounding import GroundingCriterion
from odise_pl.metrics.suite import EvaluationResult, SegmentationMetrics
from odise_pl.models.inference import NetworkPrediction
from odise_pl.models.odise import InferenceClasses, Odise, TextClasses
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import Batch, Targets
from odise_pl.training.guard import StepGuard
from odise_pl.training.optimization import OptimizerSettings, build_optimizer, learning_rate_factor
from odise_pl.vocabulary import MEASURES, Vocabulary

PREFIX = "model."
_Loss = TypeVar("_Loss")


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
        """Detached, by name; the number of the output is left out of the last one's names."""
        last = len(self.masks) - 1
        values: dict[str, Tensor] = {}
        for layer, loss in enumerate(self.masks):
            terms = vars(loss) | ({"grounding": self.grounding[layer]} if self.grounding else {})
            suffix = "" if layer == last else f"_{layer}"
            values |= {f"{name}{suffix}": term.detach() for name, term in terms.items()}
        return values


class OdiseModule(lightning.LightningModule):
    """What the trainer runs.

    Args:
        model: the network.
        criterion: the losses.
        optimizer: its settings.
        vocabulary: classes of the training labels.
        evaluations: classes of each evaluation set, in the order of its data loaders.
        global_batch: images per optimiser step over all devices.
        seed: of the random points; a step's points depend on nothing else but its number and rank.
        record: plain values kept in checkpoints so that they describe themselves.
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
        evaluations: Mapping[str, Vocabulary],
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
        self.vocabulary, self.evaluations = vocabulary, dict(evaluations)
        self.global_batch, self.seed, self.record = global_batch, seed, dict(record or {})
        self.strict_loading = False  # on_load_checkpoint is stricter than Lightning for what is trained
        self.results: dict[str, EvaluationResult] = {}
        self.measured_at = -1  # the step that the results are of
        self.metrics = [
            SegmentationMetrics(v.isthing, v.names, v.overlap(vocabulary), measured)
            for v, measured in zip(
                self.evaluations.values(), measures or [MEASURES] * len(self.evaluations), strict=True
            )
        ]
        self._skipped, self._guard = 0, StepGuard()
        self._note_counters()
        self._training_classes: TextClasses | None = None
        self._inference_classes: dict[int, InferenceClasses] = {}

    def configure_model(self) -> None:
        """Give the network the weights that this process holds."""
        place_all(self.model, self.trainer)

    # Training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Whatever draws from the global random states draws the same again in a resumed run."""
        number = self._entropy(batch_idx)
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002
        random.seed(number)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch; NaN when it has none, and its step will be left out."""
        losses = self.losses(batch, self.uniform(batch_idx))
        total = losses.total
        self._log_losses(losses, total, len(batch))
        self._note_skipped(batch)
        return total

    def losses(self, batch: Batch, uniform: Uniform) -> StepLosses:
        """All losses of a batch, with random points from ``uniform``; NaN where there are none."""
        outputs = self.model(batch.images, self.training_classes(), batch.generated_captions)
        targets = batch.targets
        if self.grounding is not None:
            targets = tuple(Targets(torch.zeros_like(t.labels), t.masks) for t in targets)
        ids = batch.image_ids
        masks = self._noting(lambda: self.criterion(outputs, targets, uniform, ids, batch.labelled))
        if self.grounding is None:
            return StepLosses(masks, [])
        grounding = self.grounding
        embeddings, valid = self.model.embed_words(batch.words, self.words)
        return StepLosses(masks, self._noting(lambda: grounding(outputs, embeddings, valid, ids)))

    def _noting(self, losses: Callable[[], list[_Loss]]) -> list[_Loss]:
        """Losses that are no numbers as what they are: other ranks wait for their gradients."""
        try:
            return losses()
        except NonFiniteError as error:
            self._guard.note(error)
            return error.losses

    def training_classes(self) -> TextClasses:
        """Embedded names of the training classes, computed once, on the device that trains."""
        if self._training_classes is None or self._training_classes.embeddings.device != self.device:
            self._training_classes = self.model.encode_classes(self.vocabulary.labels)
        return self._training_classes

    def uniform(self, batch_idx: int) -> Uniform:
        """Random numbers that a resumed run draws again: they depend on seed, step and rank only."""
        generator = torch.Generator(self.device).manual_seed(self._entropy(batch_idx))
        return lambda *size: torch.rand(*size, generator=generator, device=self.device)

    def _entropy(self, batch_idx: int) -> int:
        sequence = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        return int(sequence.generate_state(1)[0])

    def _log_losses(self, losses: StepLosses, total: Tensor, images: int) -> None:
        terms = losses.named()
        logged = {f"train/loss_{name}": term for name, term in terms.items()}
        self.log_dict({"train/loss": total.detach()} | logged, batch_size=images)
        last = {name: term for name, term in terms.items() if not name[-1].isdigit()}
        self.log_dict({"loss": total.detach()} | last, prog_bar=True, logger=False, batch_size=images)

    def _note_skipped(self, batch: Batch) -> None:
        self._skipped += batch.left_out
        self.log("data/skipped", float(self._skipped), batch_size=len(batch), sync_dist=True, reduce_fx="sum")
        if self.grounding is not None:
            without = sum(not words for words in batch.words) / len(batch)
            self.log("data/without_words", without, batch_size=len(batch))

    def _note_counters(self) -> None:
        """Counters at the end of an optimiser step, as checkpoints keep them: the batches of one that was not
        finished come again in a resumed run."""
        self._counters = {"skipped": self._skipped, **self._guard.state_dict()}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, stepped at every optimiser step."""
        optimizer = build_optimizer(self.model, self.optimizer_settings, self.global_batch)
        total_steps = int(self.trainer.estimated_stepping_batches)
        factor = learning_rate_factor(self.optimizer_settings, total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip by the norm of all trainable gradients, and log it; leave out a step that has none."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.optimizer_settings.clip_norm)
        self._guard.admits(norm, trained, self.trainer.precision == "16-mixed")
        self.log("train/gradient_norm", norm)
        self.log("train/steps_left_out", float(self._guard.left_out))
        self._note_counters()

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Text embeddings may have moved to another device or vocabulary: encode them anew."""
        self._inference_classes.clear()

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[NetworkPrediction]]:
        """Predict, score, and hand the predictions to the callbacks."""
        metrics = self.metrics[dataloader_idx]
        metrics.skip(batch.left_out)
        predictions = self.predict_batch(batch, dataloader_idx)
        if not len(batch):  # all of a loader worker's samples are damaged, or other ranks have more
            return {"predictions": []}
        truths = [truth for truth in batch.truths if truth is not None]
        metrics.update(predictions, truths, batch.image_ids)
        return {"predictions": predictions}

    def predict_batch(self, batch: Batch, index: int) -> list[NetworkPrediction]:
        """Predictions at the original sizes with the classes of evaluation set ``index``."""
        if index not in self._inference_classes:
            vocabulary = list(self.evaluations.values())[index]
            self._inference_classes[index] = self.model.prepare(vocabulary, self.vocabulary)
        if not len(batch):
            self.model.idle(self._inference_classes[index])
            return []
        return self.model.predict(
            batch.images,
            batch.valid_sizes,
            batch.original_sizes,
            self._inference_classes[index],
            batch.generated_captions,
        )

    def on_validation_epoch_end(self) -> None:
        """Results of every set, over all ranks."""
        self.measured_at = self.trainer.global_step
        for name, metrics in zip(self.evaluations, self.metrics, strict=True):
            result = metrics.compute()
            metrics.reset()
            self.results[name] = result
            prefix = "val" if len(self.evaluations) == 1 else f"val/{name}"
            values = {key: 100 * value for key, value in result.scalars().items()}
            values["left_out"] = float(result.left_out)
            self.log_dict({f"{prefix}/{key}": value for key, value in values.items()}, sync_dist=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen weights stay out; what the run was trained on goes in."""
        kept = {PREFIX + name for name in trainable_names(self.model)}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in kept}
        checkpoint["odise"] = {
            "vocabulary": self.vocabulary.to_json(),
            "record": self.record,
            "counters": self._counters | {"skipped": self._skipped_on_all_ranks()},
        }

    def _skipped_on_all_ranks(self) -> int:
        if self._trainer is None:
            return self._counters["skipped"]
        own = torch.tensor(self._counters["skipped"], device=self.device)
        return int(self.trainer.strategy.reduce(own, reduce_op="sum"))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every trained weight must be there; Lightning itself is told not to insist on the frozen ones."""
        state = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        path = None if self._trainer is None else self._trainer.ckpt_path
        load_trainable_state(self.model, state, str(path or "the checkpoint"))
        counters = (checkpoint.get("odise") or {}).get("counters", {})  # earlier versions kept none
        self._skipped = (
            counters.get("skipped", 0) if self.global_rank == 0 else 0
        )  # one rank has those of all
        self._guard.load_state_dict(counters)
        self._note_counters()
