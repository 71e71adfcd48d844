"""Training on pairs of images and texts."""

from __future__ import annotations

from typing import cast

import torch

from odise_pl.losses.contrast import ContrastCriterion, ContrastLosses
from odise_pl.losses.errors import NonFiniteError
from odise_pl.models.grouping import GroupingNetwork
from odise_pl.models.ops.points import Uniform
from odise_pl.structures import Batch
from odise_pl.training.module import OdiseModule


class ContrastModule(OdiseModule):
    """Trains GroupViT on captions; labels only serve its validation."""

    def losses(self, batch: Batch, uniform: Uniform) -> ContrastLosses:
        """The losses of a random caption of each image, and of words of its captions.

        A caption without words stands for all of them.
        """
        model, criterion = cast(GroupingNetwork, self.model), cast(ContrastCriterion, self.criterion)
        drawn = uniform(len(batch)).tolist()
        captions = [
            of_image[int(place * len(of_image))] if of_image else ""
            for of_image, place in zip(batch.captions, drawn, strict=True)
        ]
        words = [own or (caption,) * self.words for own, caption in zip(batch.words, captions, strict=True)]
        valid = torch.tensor([len(of_image) > 0 for of_image in batch.captions], device=self.device)
        try:
            return criterion(model(batch.images, captions, words), valid, batch.image_ids)
        except NonFiniteError as error:
            return cast(ContrastLosses, self._steps.non_finite_losses(error)[0])
