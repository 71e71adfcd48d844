"""An evaluation case with its network and everything that is computed from its images alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from odise_pl.models.backbones.sliding_window import Window, cut_windows, plan_windows
from odise_pl.models.inference import InferenceSettings
from odise_pl.models.odise import InferenceClasses, Odise, pad_images
from odise_pl.structures import Size
from tests.parity.decisions import DecidingMaskDecoder
from tests.parity.models import flat_names, seen_shares
from tests.parity.records import Case
from tests.parity.results import thresholds

REC = "rec/"
LDM = REC + "ldm_extractor."
PREDICTOR = REC + "predictor/0/"


@dataclass
class Evaluation:
    """One case with its network and prepared inputs."""

    case: Case
    model: Odise

    def held(self, name: str) -> Tensor | None:
        """A recorded tensor, None where it was not kept."""
        return self.case.tensors.get(name)

    @cached_property
    def canvas(self) -> tuple[Tensor, list[Size]]:
        """The padded images and their sizes."""
        return pad_images(self.case.images())

    @cached_property
    def plan(self) -> list[Window]:
        """Where windows are cut."""
        height, width = self.canvas[0].shape[-2:]
        return plan_windows(height, width, self.model.backbone.window)

    @cached_property
    def windows(self) -> list[Tensor]:
        """Every window of all images at the diffusion model's size: [B, 3, S, S] each."""
        cuts = cut_windows(self.canvas[0], self.plan, self.model.backbone.input_size)
        return list(cuts.chunk(len(self.plan)))

    @cached_property
    def classes(self) -> InferenceClasses:
        """The embedded test labels."""
        test, settings = flat_names(self.case.fact("test_labels")), self.model.classifier
        train = flat_names(self.case.facts.get("train_labels") or [])
        things = set(self.case.facts.get("thing_ids") or [])
        return InferenceClasses(
            self.model.encode_classes(test, settings.mask_prompt),
            self.model.encode_classes(test, settings.clip_prompt),
            seen_shares(self.model, test, train),
            tuple(i in things for i in range(len(test))),
        )

    def output_size(self, index: int) -> Size:
        """Size of an image's results."""
        facts, valid = self.case.facts, self.canvas[1][index]
        place = f"inputs/{index}"
        return int(facts.get(f"{place}/height", valid[0])), int(facts.get(f"{place}/width", valid[1]))

    @cached_property
    def decoder(self) -> DecidingMaskDecoder:
        """The model's mask decoder."""
        assert isinstance(self.model.mask_decoder, DecidingMaskDecoder)
        return self.model.mask_decoder

    @property
    def settings(self) -> InferenceSettings:
        """Thresholds of the results."""
        return thresholds(self.case.facts)

    @cached_property
    def isthing(self) -> tuple[bool, ...]:
        """Per test class."""
        return self.classes.isthing


def output_place(index: int, last: int) -> str:
    """Where the record keeps the decoder's prediction ``index`` of ``last`` + 1."""
    return PREDICTOR if index == last else f"{PREDICTOR}aux_outputs/{index}/"
