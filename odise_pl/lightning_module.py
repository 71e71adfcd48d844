"""Training and evaluation steps, logging, optimiser; the maths is in the rooms below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from odise_pl.checkpoint import load_trainable_state, trainable_names
from odise_pl.losses.criterion import MaskLosses, SetCriterion
from odise_pl.metrics.suite import EvaluationResult, SegmentationMetrics
from odise_pl.odise import InferenceClasses, Odise, TextClasses
from odise_pl.ops.points import Uniform
from odise_pl.optimization import OptimizerSettings, build_optimizer, learning_rate_factor
from odise_pl.structures import Batch, Prediction
from odise_pl.vocabulary import Vocabulary
from odise_pl.weights import read_checkpoint

PREFIX = "model."


@dataclass(frozen=True)
class CheckpointDescription:
    """What a checkpoint says of itself: the run's record and training classes; None where it is silent."""

    record: dict[str, Any] | None
    vocabulary: Vocabulary | None


def describe(path: str | Path) -> CheckpointDescription:
    """Read the description in a checkpoint; official checkpoints have none."""
    kept = read_checkpoint(path).get("odise")
    if kept is None:
        return CheckpointDescription(None, None)
    vocabulary = Vocabulary.from_json(kept["vocabulary"], kept["vocabulary"]["name"])
    return CheckpointDescription(kept["record"] or None, vocabulary)


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
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.optimizer_settings = model, criterion, optimizer
        self.vocabulary, self.evaluations = vocabulary, dict(evaluations)
        self.global_batch, self.seed, self.record = global_batch, seed, dict(record or {})
        self.strict_loading = False  # on_load_checkpoint is stricter than Lightning for what is trained
        self.results: dict[str, EvaluationResult] = {}
        self.metrics = nn.ModuleList(
            SegmentationMetrics(v.isthing, v.names) for v in self.evaluations.values()
        )
        self._skipped = 0
        self._training_classes: TextClasses | None = None
        self._inference_classes: dict[int, InferenceClasses] = {}

    # Training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch; raises NonFiniteError with the image ids when it has none."""
        outputs = self.model(batch.images, self._classes_for_training())
        uniform = self._uniform(batch_idx)
        losses = self.criterion(outputs, batch.targets, uniform, batch.image_ids)
        total: Tensor = torch.stack([term for loss in losses for term in vars(loss).values()]).sum()
        self._log_losses(losses, total, len(batch))
        self._note_skipped(batch)
        return total

    def _classes_for_training(self) -> TextClasses:
        # frozen text embeddings: computed once, on the device that trains
        if self._training_classes is None or self._training_classes.embeddings.device != self.device:
            self._training_classes = self.model.encode_classes(self.vocabulary.labels)
        return self._training_classes

    def _uniform(self, batch_idx: int) -> Uniform:
        """Random numbers that a resumed run draws again: they depend on seed, step and rank only."""
        entropy = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, self.global_rank])
        generator = torch.Generator(self.device).manual_seed(int(entropy.generate_state(1)[0]))
        return lambda *size: torch.rand(*size, generator=generator, device=self.device)

    def _log_losses(self, losses: list[MaskLosses], total: Tensor, images: int) -> None:
        values = {"train/loss": total.detach()}
        last = len(losses) - 1
        for layer, loss in enumerate(losses):
            suffix = "" if layer == last else f"_{layer}"
            values |= {f"train/loss_{name}{suffix}": term.detach() for name, term in vars(loss).items()}
        self.log_dict(values, batch_size=images)
        shown = {"loss": total.detach()} | {n: term.detach() for n, term in vars(losses[last]).items()}
        self.log_dict(shown, prog_bar=True, logger=False, batch_size=images)

    def _note_skipped(self, batch: Batch) -> None:
        self._skipped += len(batch.skipped)
        self.log("data/skipped", float(self._skipped), batch_size=len(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, stepped at every optimiser step."""
        optimizer = build_optimizer(self.model, self.optimizer_settings, self.global_batch)
        total_steps = int(self.trainer.estimated_stepping_batches)
        factor = learning_rate_factor(self.optimizer_settings, total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip by the norm of all trainable gradients, and log it."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(trained, self.optimizer_settings.clip_norm)
        self.log("train/gradient_norm", norm)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Text embeddings may have moved to another device or vocabulary: encode them anew."""
        self._inference_classes.clear()

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[Prediction]]:
        """Predict, score, and hand the predictions to the callbacks."""
        predictions = self.predict_batch(batch, dataloader_idx)
        truths = [truth for truth in batch.truths if truth is not None]
        metrics: SegmentationMetrics = self.metrics[dataloader_idx]  # type: ignore[assignment]
        metrics.update(predictions, truths, batch.image_ids)
        return {"predictions": predictions}

    def predict_batch(self, batch: Batch, index: int) -> list[Prediction]:
        """Predictions at the original sizes with the classes of evaluation set ``index``."""
        if index not in self._inference_classes:
            vocabulary = list(self.evaluations.values())[index]
            self._inference_classes[index] = self.model.prepare(vocabulary, self.vocabulary)
        return self.model.predict(
            batch.images, batch.valid_sizes, batch.original_sizes, self._inference_classes[index]
        )

    def on_validation_epoch_end(self) -> None:
        """Results of every set, over all ranks."""
        for name, metrics in zip(self.evaluations, self.metrics, strict=True):
            result = metrics.compute()  # type: ignore[operator]
            metrics.reset()  # type: ignore[operator]
            self.results[name] = result
            prefix = "val" if len(self.evaluations) == 1 else f"val/{name}"
            self.log_dict(
                {f"{prefix}/{key}": 100 * value for key, value in result.scalars().items()}, sync_dist=True
            )

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Frozen weights stay out; what the run was trained on goes in."""
        kept = {PREFIX + name for name in trainable_names(self.model)}
        checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in kept}
        checkpoint["odise"] = {"vocabulary": self.vocabulary.to_json(), "record": self.record}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every trained weight must be there; Lightning itself is told not to insist on the frozen ones."""
        state = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        load_trainable_state(self.model, state, "the checkpoint")
