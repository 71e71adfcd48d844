"""What happens around training: throughput, pictures, reports."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import psutil
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import Console

from odise_pl.metrics.report import as_dict, write_summary
from odise_pl.metrics.tables import result_table
from odise_pl.prediction.drawing import overlay, side_by_side
from odise_pl.structures import Batch, Prediction
from odise_pl.training.logger import TensorBoard
from odise_pl.training.module import OdiseModule

_GIB = 1024**3


class Throughput(Callback):
    """Logs images per second over all devices, the share of time spent waiting for data, and memory.

    Values are means since they were last logged.

    Args:
        every: batches between logs.
    """

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self._reset()

    def on_train_start(self, *_: Any) -> None:
        self._reset()

    def on_validation_end(self, *_: Any) -> None:
        """Validation is no training time."""
        self._reset()

    def _reset(self) -> None:
        self._since = self._batch_ended = time.perf_counter()
        self._images, self._batches, self._waiting = 0, 0, 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """The time since the last batch ended was spent waiting for this one."""
        self._waiting += time.perf_counter() - self._batch_ended

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._batch_ended = time.perf_counter()
        self._images += len(batch)
        self._batches += 1
        if self._batches < self.every:
            return
        elapsed = self._batch_ended - self._since
        images = self._images * trainer.world_size / elapsed
        values = {"speed/images_per_second": images, "speed/data_wait_share": self._waiting / elapsed}
        pl_module.log_dict(values | memory(pl_module.device), batch_size=1)
        self._reset()


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process in GiB: resident, and the peak on the accelerator if there is one."""
    values = {"memory/resident_gib": psutil.Process().memory_info().rss / _GIB}
    if device.type == "cuda":
        values["memory/device_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return values


class RunProgress(RichProgressBar):
    """Lightning's bar of an epoch, with the step of the run and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self._started, self._first = 0.0, 0

    def _get_train_description(self, current_epoch: int) -> str:
        # a run is limited by steps, and Lightning would call its last epoch -2; there is no public hook
        return super()._get_train_description(current_epoch).replace("/-2", "")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started, self._first = time.monotonic(), trainer.global_step

    def get_metrics(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        done = trainer.global_step - self._first
        if trainer.training and done > 0 and trainer.max_steps > 0:
            seconds = (time.monotonic() - self._started) / done * (trainer.max_steps - trainer.global_step)
            metrics["step"] = f"{trainer.global_step}/{trainer.max_steps}"
            metrics["left"] = str(timedelta(seconds=round(seconds)))
        return metrics


class PanopticPictures(Callback):
    """Writes prediction beside truth of the first images of every evaluation set to TensorBoard.

    Args:
        count: images of each set.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(trainer.logger, TensorBoard) or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, OdiseModule)
        name = list(pl_module.eval_vocabularies)[dataloader_idx]
        for index in range(min(self.count - batch_idx * len(batch), len(batch))):
            picture = self._picture(pl_module, batch, outputs["predictions"][index], index, name)
            tag = f"{name}/{batch.image_ids[index]}"
            trainer.logger.log_picture(tag, picture, trainer.global_step)

    def _picture(
        self, module: OdiseModule, batch: Batch, prediction: Prediction, index: int, name: str
    ) -> Any:
        names, truth = module.eval_vocabularies[name].names, batch.truths[index]
        height, width = batch.valid_sizes[index]
        image = batch.images[index, :, :height, :width]
        pictures = [overlay(image, prediction.panoptic, names)]
        if truth is not None:
            pictures.append(overlay(image, truth.panoptic, names))
        return side_by_side(pictures)


class ResultReport(Callback):
    """Prints the table of every evaluation and writes it as JSON and Markdown.

    Args:
        folder: where ``SET/results.json`` and ``SET/results.md`` go.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, OdiseModule)
        summaries = [as_dict(result, name) for name, result in pl_module.results.items()]
        console = Console()
        console.print(result_table(summaries).terminal(console.width))
        for summary in summaries:
            write_summary(summary, self.folder / summary["data"], {"step": trainer.global_step})
