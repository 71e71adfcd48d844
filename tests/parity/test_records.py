from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.models import WeightFiles, checkpoint_of, frozen_files
from tests.parity.records import Case, RecordError, kind_of, read_cases

ONE = torch.ones(1)


def write(folder: Path, name: str, facts: Any, tensors: dict[str, Tensor] | None = None) -> None:
    (folder / f"{name}.json").write_text(json.dumps(facts))
    if tensors is not None:
        save_file(tensors, folder / f"{name}.safetensors")


def case(facts: dict[str, Any], tensors: dict[str, Tensor] | None = None, folder: Path = Path()) -> Case:
    return Case("held", folder, facts, tensors or {})


def test_a_case_is_its_facts_and_its_tensors(tmp_path: Path) -> None:
    write(tmp_path, "b", {"model": "label"}, {"inputs/0/image": ONE})
    write(tmp_path, "a", {"phrases": {}})
    save_file({"x": ONE}, tmp_path / "weights.safetensors")  # no case: it has no JSON
    first, second = read_cases(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    assert second.fact("model") == "label"
    assert list(second.tensors) == ["inputs/0/image"]
    assert [c.name for c in read_cases(tmp_path, ["b"])] == ["b"]


def test_cases_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such folder"):
        read_cases(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="has no case at all"):
        read_cases(tmp_path)
    write(tmp_path, "a", {})
    with pytest.raises(RecordError, match="has no case held_x; there are: a"):
        read_cases(tmp_path, ["a", "held_x"])


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_damaged_facts_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(RecordError, match="odd"):
        read_cases(tmp_path)


def test_damaged_tensors_are_named(tmp_path: Path) -> None:
    write(tmp_path, "odd", {}, {"x": torch.ones(100)})
    path = tmp_path / "odd.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RecordError, match=r"odd.* is damaged"):
        read_cases(tmp_path)


@pytest.mark.parametrize(
    ("facts", "names", "kind"),
    [
        ({"phrases": {}, "tags": {}}, [], "noun_phrases"),
        ({"total": [1.0, 2.0]}, [], "optimiser"),
        ({"total": [1.0]}, ["inputs/0/image", "inputs/0/gt_masks"], "optimiser"),
        ({"total": 1.0}, ["inputs/0/image", "inputs/0/gt_masks"], "training"),
        ({"losses/loss_ce": 0.0}, ["inputs/0/image"], "training"),
        ({"grad_norm/x": 1.0}, ["inputs/0/image"], "training"),
        ({"model": "caption"}, ["inputs/0/image", "grads/x"], "training"),
        ({"model": "label"}, ["inputs/0/image"], "evaluation"),
        ({}, ["outputs/word_embed"], "grounding"),
        ({}, ["cases/0/mask_cls"], "postprocess"),
        ({"text": ["a"]}, ["hf_tokens"], "text"),
        ({}, ["K12/outputs/pred_masks"], "criterion"),
        ({}, ["outputs/pred_masks"], "criterion"),
    ],
)
def test_the_kind_follows_from_what_is_held(facts: dict[str, Any], names: list[str], kind: str) -> None:
    assert kind_of(case(facts, dict.fromkeys(names, ONE))) == kind


def test_an_unknown_kind_says_what_it_holds() -> None:
    with pytest.raises(RecordError, match="held is of no known kind: it holds epochs, x"):
        kind_of(case({"epochs": 3}, {"x": ONE}))


def test_numbered_tensors_come_in_order() -> None:
    tensors = {f"rec/f/{i}/y": torch.tensor(float(i)) for i in (10, 2, 0)} | {"rec/f/1/z": ONE}
    assert [int(t) for t in case({}, tensors).numbered("rec/f", "/y").values()] == [0, 2, 10]
    assert case({}, tensors).count("rec/f") == 11
    assert case({"inputs/2/height": 1}).count("inputs") == 3


def test_a_missing_fact_is_named() -> None:
    with pytest.raises(RecordError, match="held: its JSON has no 'steps'"):
        case({}).fact("steps")


def test_the_checkpoint_is_the_one_that_the_case_names_else_the_one_on_the_command_line(
    tmp_path: Path,
) -> None:
    inside, outside = tmp_path / "in.pth", tmp_path / "elsewhere" / "out.pth"
    outside.parent.mkdir()
    outside.touch()
    files = WeightFiles(checkpoint=outside)
    named = case({"weights": "in.pth"}, folder=tmp_path)
    assert checkpoint_of(named, files) == outside
    inside.touch()
    assert checkpoint_of(named, files) == inside
    assert checkpoint_of(case({}, folder=tmp_path), files) == outside
    with pytest.raises(RecordError, match="its JSON names no weights; name the file with --weights"):
        checkpoint_of(case({}, folder=tmp_path), WeightFiles())
    with pytest.raises(RecordError, match=r"its weights other\.pth are not in .*--weights"):
        checkpoint_of(case({"weights": "other.pth"}, folder=tmp_path), WeightFiles())


def test_frozen_weights_are_found_by_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="--diffusion"):
        frozen_files(tmp_path, WeightFiles())
    save_file({"model.diffusion_model.x": ONE}, tmp_path / "a.safetensors")
    with pytest.raises(RecordError, match="--clip"):
        frozen_files(tmp_path, WeightFiles())
    save_file({"visual.conv1.weight": ONE}, tmp_path / "b.safetensors")
    assert frozen_files(tmp_path, WeightFiles()) == (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    beside = WeightFiles(checkpoint=tmp_path / "odise.pth")  # held cases may lie elsewhere
    empty = tmp_path / "held"
    empty.mkdir()
    assert frozen_files(empty, beside) == (tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    own = WeightFiles(diffusion=Path("x"), clip=Path("y"))
    assert frozen_files(empty, own) == (Path("x"), Path("y"))
