"""The recorded numbers of the published model: small records always, the others where they are."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from odise_pl.parity.__main__ import main

FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = Path(os.environ.get("ODISE_REFERENCE", Path(__file__).parents[2] / ".." / "shared" / "reference"))
SMALL = REFERENCE / "small"
STAGES = ["isolated_grounding", "isolated_matcher_criterion", "isolated_noun_phrases", "isolated_postprocess"]
CASES = [
    *["isolated_postprocess", "isolated_text"],
    *["eval_label_A", "eval_caption_A", "eval_label_C_padded", "eval_label_steps_0_100_200"],
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


def test_a_missing_case_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--case", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
