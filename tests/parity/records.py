"""Recorded cases: facts in ``NAME.json``, tensors in ``NAME.safetensors``, both with ``/``-joined names."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from odise_pl.errors import UserError


class RecordError(UserError):
    """A record is missing, incomplete or of an unknown kind; the message names it."""


@dataclass(frozen=True)
class Case:
    """A record: ``facts`` are labels, sizes, losses and other plain values."""

    name: str
    folder: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def fact(self, name: str) -> Any:
        if name not in self.facts:
            raise RecordError(f"its JSON has no '{name}'")
        return self.facts[name]

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise RecordError(f"its record has no '{name}'")
        return self.tensors[name]

    def images(self) -> list[Tensor]:
        """The input images in 0..1."""
        return [image.float() / 255 for image in self.numbered("inputs", "/image").values()]

    def under(self, prefix: str) -> Case:
        """The entries whose names start with ``prefix``, without the prefix."""

        def part(values: Mapping[str, Any]) -> dict[str, Any]:
            return {n.removeprefix(prefix): value for n, value in values.items() if n.startswith(prefix)}

        return Case(self.name, self.folder, part(self.facts), part(self.tensors))

    def numbered(self, prefix: str, suffix: str = "") -> dict[int, Tensor]:
        """Tensors named ``prefix/NUMBER`` + ``suffix``, by number."""
        pattern = re.compile(re.escape(prefix) + r"/(\d+)" + re.escape(suffix))
        found = {int(m[1]): value for name, value in self.tensors.items() if (m := pattern.fullmatch(name))}
        return dict(sorted(found.items()))


def read_cases(folder: Path, names: Sequence[str] = ()) -> list[Case]:
    """All cases of a folder, or only ``names``."""
    there = sorted(path.stem for path in folder.glob("*.json"))
    missing = [name for name in names if name not in there]
    if missing or not there:
        raise RecordError(
            f"{folder} has no case {', '.join(missing) or 'NAME.json'}; it has: {', '.join(there) or 'none'}"
        )
    return [_read_case(folder, name) for name in (names or there)]


def _read_case(folder: Path, name: str) -> Case:
    tensors = folder / f"{name}.safetensors"
    facts = json.loads((folder / f"{name}.json").read_text())
    return Case(name, folder, facts, load_file(tensors) if tensors.is_file() else {})


def kind_of(case: Case) -> str:
    """The kind of a case, from its content."""
    tensors = case.tensors
    tests = {
        "noun_phrases": "phrases" in case.facts,
        "optimiser": isinstance(case.facts.get("total"), list),
        "training": "inputs/0/image" in tensors and _has_step(case),
        "evaluation": "inputs/0/image" in tensors,
        "grounding": "outputs/word_embed" in tensors,
        "postprocess": "cases/0/mask_cls" in tensors,
        "text": "text" in case.facts,
        "criterion": any(name.endswith("outputs/pred_masks") for name in tensors),
    }
    for kind, fits in tests.items():
        if fits:
            return kind
    shown = ", ".join([*case.facts, *tensors][:4]) or "nothing"
    raise RecordError(f"unknown kind of case: it holds {shown}")


def _has_step(case: Case) -> bool:
    """Whether a case records losses or gradients."""
    names = [*case.facts, *case.tensors]
    marks = ("losses/", "grad_norm/", "grads/", "points_", "total")
    return any(name.startswith(marks) or name.endswith("/gt_masks") for name in names)
