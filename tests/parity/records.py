"""Recorded cases: ``NAME.json`` holds facts, ``NAME.safetensors`` tensors, both under ``/``-joined names."""

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
    """A record is missing, damaged or of an unknown kind; the message names it."""


@dataclass(frozen=True)
class Case:
    """One record.

    Attributes:
        name: of its files.
        folder: where they are.
        facts: labels, window size, losses, ..., by ``/``-joined names.
        tensors: by ``/``-joined names.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def fact(self, name: str) -> Any:
        """A fact that has to be there."""
        if name not in self.facts:
            raise RecordError(f"{self.name}: its JSON has no '{name}'")
        return self.facts[name]

    def tensor(self, name: str) -> Tensor:
        """A tensor that has to be there."""
        if name not in self.tensors:
            raise RecordError(f"{self.name}: its record has no '{name}'")
        return self.tensors[name]

    def images(self) -> list[Tensor]:
        """The input images in 0..1."""
        return [self.tensor(f"inputs/{i}/image").float() / 255 for i in range(self.count("inputs"))]

    def count(self, prefix: str) -> int:
        """How many numbered entries there are under ``prefix``, among tensors and facts."""
        pattern = re.compile(re.escape(prefix) + r"/(\d+)(?:/|$)")
        names = [*self.tensors, *self.facts]
        return 1 + max((int(m[1]) for m in map(pattern.match, names) if m), default=-1)

    def numbered(self, prefix: str, suffix: str = "") -> dict[int, Tensor]:
        """Tensors named ``prefix/NUMBER`` + ``suffix``, by number."""
        pattern = re.compile(re.escape(prefix) + r"/(\d+)" + re.escape(suffix))
        found = {int(m[1]): value for name, value in self.tensors.items() if (m := pattern.fullmatch(name))}
        return dict(sorted(found.items()))


def read_cases(folder: Path, names: Sequence[str] = ()) -> list[Case]:
    """The cases of a folder, or those that are named.

    Raises:
        RecordError: no such folder or case, or a file cannot be read.
    """
    if not folder.is_dir():
        raise RecordError(f"no such folder: {folder}")
    there = sorted(path.stem for path in folder.glob("*.json"))
    missing = [name for name in names if name not in there]
    if missing or not there:
        raise RecordError(
            f"{folder} has no case {', '.join(missing) or 'at all'}; there are: {', '.join(there) or 'none'}"
        )
    return [read_case(folder, name) for name in (names or there)]


def read_case(folder: Path, name: str) -> Case:
    """One case."""
    facts, tensors = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        data = json.loads(facts.read_text())
        held = load_file(tensors) if tensors.is_file() else {}
    except (ValueError, OSError, RuntimeError) as error:  # json and safetensors have errors of these kinds
        raise RecordError(f"case {name} in {folder} is damaged: {error}") from error
    except Exception as error:
        raise RecordError(f"{tensors} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise RecordError(f"{facts} holds a {type(data).__name__}, not the facts of a case")
    return Case(name, folder, data, held)


def _has_step(case: Case) -> bool:
    """Whether a case holds losses or gradients; annotations it may lack, as captioned images do."""
    marks = ("losses/", "grad_norm/", "grads/", "points_")
    named = any(name.startswith(marks) for name in (*case.facts, *case.tensors))
    return named or "total" in case.facts or any(name.endswith("/gt_masks") for name in case.tensors)


def kind_of(case: Case) -> str:
    """What a case is about, from what it holds.

    Raises:
        RecordError: it is none of the known kinds.
    """
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
    raise RecordError(f"case {case.name} is of no known kind: it holds {shown}")
