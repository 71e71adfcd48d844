"""The recorded numbers of the published model: small records always, the others where they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from odise_pl.losses.criterion import LossWeights, SetCriterion
from odise_pl.losses.matcher import HungarianMatcher
from tests.parity import criterion
from tests.parity.__main__ import main
from tests.parity.points import TERMS
from tests.parity.records import Case

FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = Path(os.environ.get("ODISE_REFERENCE", Path(__file__).parents[2] / ".." / "shared" / "reference"))
SMALL = REFERENCE / "small"
STAGES = ["isolated_grounding", "isolated_matcher_criterion", "isolated_noun_phrases", "isolated_postprocess"]
CASES = [
    *["isolated_matcher_criterion", "isolated_postprocess", "isolated_text"],
    *["eval_label_A", "eval_caption_A", "eval_label_C_padded", "eval_label_steps_0_100_200"],
    *["eval_label_windows", "eval_caption_windows"],
    *["train_label_T1", "train_caption_T1", "adamw_steps_label", "adamw_steps_caption"],
]
recorded = pytest.mark.skipif(
    not SMALL.is_dir(), reason=f"no recorded cases in {SMALL}: set ODISE_REFERENCE to their folder"
)


@pytest.mark.parametrize("case", STAGES)
def test_a_stage_gives_the_recorded_numbers(case: str) -> None:
    assert main([str(FIXTURES), "--case", case]) == 0


@recorded
@pytest.mark.parametrize("case", CASES)
def test_a_case_gives_the_recorded_numbers(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(SMALL), "--case", case])
    assert status == 0, capsys.readouterr().out


@recorded
def test_a_case_under_another_name_with_its_weights_on_the_command_line(tmp_path: Path) -> None:
    facts = json.loads((SMALL / "eval_caption_A.json").read_text())
    del facts["weights"]
    (tmp_path / "held_x.json").write_text(json.dumps(facts))
    shutil.copy(SMALL / "eval_caption_A.safetensors", tmp_path / "held_x.safetensors")
    for name in ("sd_v1_small.safetensors", "clip_small.safetensors"):
        (tmp_path / name).symlink_to((SMALL / name).resolve())
    weights = str(SMALL / "odise_caption.pth")
    assert main([str(tmp_path), "--case", "held_x", "--weights", weights]) == 0


def test_a_wrong_number_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(FIXTURES / "isolated_postprocess.safetensors")
    tensors["cases/0/sem_seg"] = tensors["cases/0/sem_seg"] + 1e-2 * torch.ones(1)
    save_file(tensors, tmp_path / "isolated_postprocess.safetensors")
    shutil.copy(FIXTURES / "isolated_postprocess.json", tmp_path)
    assert main([str(tmp_path)]) == 1
    assert "semantic scores" in capsys.readouterr().out


def losses_after(seed: int, facts: dict, tensors: dict, place: str) -> dict[str, float]:
    """Unweighted losses, with points drawn from the global generator."""
    case = Case("made", FIXTURES, facts, tensors)
    outputs, targets = criterion._predictions(case, place), criterion._targets(case, place)
    loss = SetCriterion(HungarianMatcher(num_points=1024), LossWeights(1, 1, 1), num_points=1024)
    torch.manual_seed(seed)
    with torch.no_grad():
        found = loss(outputs, targets, torch.rand, range(len(targets)))
    names = ["", *(f"_{i}" for i in range(len(found) - 1))]
    return {
        kind + suffix: float(getattr(one, field))
        for one, suffix in zip(found, names, strict=True)
        for kind, field in TERMS.items()
    }


@pytest.mark.parametrize(("seed", "status"), [(0, 0), (7, 0), (10**9, 1)])
def test_a_global_seed_is_found_by_what_it_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, status: int
) -> None:
    tensors = load_file(FIXTURES / "isolated_matcher_criterion.safetensors")
    facts = json.loads((FIXTURES / "isolated_matcher_criterion.json").read_text())
    found = losses_after(seed, facts, tensors, "K12/")
    facts = {f"K12/losses_unweighted_seed/{name}": value for name, value in found.items()}
    save_file(tensors, tmp_path / "made.safetensors")
    (tmp_path / "made.json").write_text(json.dumps(facts))
    assert main([str(tmp_path)]) == status
    assert "K12/seed: losses" in capsys.readouterr().out
    # a record may also say which it is
    (tmp_path / "made.json").write_text(json.dumps(facts | {"seed": seed}))
    assert main([str(tmp_path)]) == 0


def test_a_missing_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--case", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
