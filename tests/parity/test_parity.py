"""The network reproduces recorded numbers, and the tool finds faults in records and networks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.__main__ import main
from tests.parity.isolated import schedule_checks, token_checks
from tests.parity.records import Case, read_cases
from tests.parity.training import GROUNDING, check_training

Change = Callable[[dict[str, Any], dict[str, Tensor]], object]

FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = Path(os.environ.get("ODISE_REFERENCE", Path(__file__).parents[2] / ".." / "shared" / "reference"))
SMALL = REFERENCE / "small"
CASES = [
    *["isolated_text", "eval_caption_windows", "train_caption_T1"],
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in (
            "eval_caption_A",
            "eval_label_windows",
            "eval_label_C_padded",
            "eval_label_steps_0_100_200",
        )
    ),
    *(pytest.param(f"adamw_steps_{model}", marks=pytest.mark.slow) for model in ("label", "caption")),
]
recorded = pytest.mark.skipif(
    not SMALL.is_dir(), reason=f"no recorded cases in {SMALL}: set ODISE_REFERENCE to their folder"
)


def test_tokens_and_noise_schedule_equal_record() -> None:
    (case,) = read_cases(FIXTURES, ["isolated_text"])
    checks = [*token_checks(case), *schedule_checks(case)]
    assert len(checks) == 4
    assert all(check.ok for check in checks)


@recorded
@pytest.mark.parametrize("case", CASES)
def test_network_reproduces_small_records(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([str(SMALL), "--case", case])
    assert status == 0, capsys.readouterr().out


def changed(source: Path, case: str, folder: Path, change: Change) -> str:
    """Save a changed copy of a case as ``held_x`` beside the weights; returns its folder."""
    for path in [
        *source.glob("*.pth"),
        source / "sd_v1_small.safetensors",
        source / "clip_small.safetensors",
    ]:
        if path.is_file():
            (folder / path.name).symlink_to(path.resolve())
    facts = json.loads((source / f"{case}.json").read_text())
    path = source / f"{case}.safetensors"
    tensors = load_file(path) if path.is_file() else {}
    change(facts, tensors)
    (folder / "held_x.json").write_text(json.dumps(facts))
    if tensors:
        save_file(tensors, folder / "held_x.safetensors")
    return str(folder)


def failed(output: str) -> set[str]:
    """Failed stages in the printed table."""
    return {line[28:77].strip() for line in output.splitlines() if "NOT OK" in line}


def turn(x: Tensor) -> Tensor:
    """Add a perpendicular vector of 5 % of the length."""
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    other -= (other * x).sum() / x.square().sum() * x
    return x + 0.05 * x.norm() * other / other.norm()


# A change of each isolated record, and the stages that must fail.
WRONG: dict[str, tuple[Change, set[str]]] = {
    "isolated_postprocess": (
        lambda f, t: (
            t["cases/0/sem_seg"].add_(1e-3),
            t["cases/0/panoptic_seg"][:20, :20].add_(1),
            t["cases/0/inst_scores"].mul_(1.001),
            t["cases/0/inst_classes"][0].add_(1),
            f.update({"cases/0/segments_info/0/category_id": 6}),
        ),
        {
            f"cases/0: {x}"
            for x in ("semantic scores", "panoptic map", "instance scores", "instances", "segments")
        },
    ),
    "isolated_matcher_criterion": (
        lambda f, t: (
            t["K12/cost_fixed/0/cost_mask"].mul_(1.001),
            t["K12/grad_rand/pred_masks"].mul_(1.001),
            t["K12/indices_rand/0/0"][0].add_(1),
            f.update({"K12/losses_unweighted_fixed/loss_dice_0": 0.7}),
        ),
        {f"K12/{x}" for x in ("costs", "rand: gradient of pred_masks", "rand: matches", "fixed: losses")},
    ),
    "isolated_grounding": (
        lambda f, t: t["valid_partial/loss_mask_word"].mul_(1.0001),
        {"loss (valid_partial)"},
    ),
    "isolated_noun_phrases": (lambda f, t: f["tags"].clear(), {"noun phrases"}),
}


@pytest.mark.parametrize("case", WRONG)
def test_isolated_stages_reproduce_records(case: str) -> None:
    assert main([str(FIXTURES), "--case", case]) == 0


@pytest.mark.parametrize("case", WRONG)
def test_wrong_isolated_records_fail(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = WRONG[case]
    assert main([changed(FIXTURES, case, tmp_path, change)]) == 1
    assert failed(capsys.readouterr().out) == expected


@pytest.mark.slow
@recorded
def test_wrong_evaluation_record_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the changed stages and those that read them fail."""
    stages = {
        "rec/ldm_extractor.encode_to_latent/1/latent": {"latent", "noisy latent"},
        "rec/ldm_extractor.forward/1/cond_inputs": {"conditioning"},
        "rec/ldm_extractor.forward/0/features/5": {"features (recorded latent)"},
        "rec/backbone.forward/0/out/s4": {
            "end to end: pyramid",
            *(f"pixel decoder (recorded pyramid): {what}" for what in ("levels", "mask features")),
        },
        "rec/predictor/0/aux_outputs/3/mask_embed": {
            "mask decoder (recorded features): mask embeddings",
            "end to end: mask embeddings",
        },
        "rec/clip_head.get_mask_embed/0/mask_embed": {"masked CLIP (recorded masks)"},
        "rec/cal_pred_logits/0": {"diffusion logits (recorded embeddings)"},
    }

    def shift(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        facts["windows"] = [[0, 0, 64]]
        for name in stages:
            tensors[name] += 2e-3 * tensors[name].abs().max()

    assert main([changed(SMALL, "eval_label_A", tmp_path, shift)]) == 1
    assert failed(capsys.readouterr().out) == {"places of windows"}.union(*stages.values())


@pytest.mark.slow
@recorded
def test_wrong_training_record_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the changed stages and those that read them fail."""
    longer = "backbone.feature_projections.3.0.conv2.weight"
    turned = "sem_seg_head.predictor.transformer_ffn_layers.1.linear1.bias"

    def change(facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        facts.pop(f"grad_norm/{longer}", None)
        tensors[f"grads/{longer}"] *= 1.01
        tensors[f"grads/{turned}"] = turn(tensors[f"grads/{turned}"])
        facts["losses/loss_dice_1"] *= 1.0001
        tensors["rec/matcher.indices/2/0/0"][0] += 1
        tensors["rec/predictor/0/aux_outputs/1/mask_embed"] *= 1.001

    assert main([changed(SMALL, "train_label_T1", tmp_path, change)]) == 1
    output = capsys.readouterr().out
    assert failed(output) == {
        *(f"recorded predictions: {stage}" for stage in ("loss_dice", "matches")),
        *(f"end to end: {stage}" for stage in ("loss_dice", "matches", "mask embeddings")),
        *(f"gradients: {what}" for what in ("norms", "directions (1 - cosine)")),
    }
    assert longer in output
    assert turned in output


@recorded
def test_wrong_weight_fails(tmp_path: Path) -> None:
    """Weights are given by the option; correct ones pass in another test."""
    folder = changed(SMALL, "eval_label_windows", tmp_path, lambda facts, tensors: facts.pop("weights"))
    data = torch.load(SMALL / "odise_label.pth", weights_only=True)
    data["model"]["sem_seg_head.pixel_decoder.mask_features.weight"] *= 1.01
    torch.save(data, tmp_path / "other.pth")
    assert main([folder, "--weights", str(tmp_path / "other.pth")]) == 1


@recorded
def test_grounding_loss_ignores_missing_annotations() -> None:
    """Grounding losses are those of the full record; of the others, one is changed and fails."""
    (full,) = read_cases(SMALL, ["train_caption_T1"])
    dropped = ("grads/", "points_", "rec/matcher", "inputs/0/gt_", "inputs/1/gt_")
    tensors = {name: x for name, x in full.tensors.items() if not name.startswith(dropped)}
    facts = {name: x for name, x in full.facts.items() if not name.startswith(("grad_norm/", "total"))}
    facts |= {name: 0.0 for name in facts if name.startswith("losses/") and GROUNDING not in name}
    head = "grads/sem_seg_head.predictor.class_embed.weight"
    tensors[head] = torch.zeros_like(full.tensors[head])
    checks = check_training(Case("held_x", SMALL, facts | {"losses/loss_ce_2": 0.1}, tensors), None)
    assert {"end to end: loss_mask_word", "gradients: norms"} <= {check.stage for check in checks}
    assert {c.stage for c in checks if not c.ok} == {
        f"{stage}: loss_ce" for stage in ("recorded predictions", "end to end")
    }


@recorded
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, t: f.pop("weights"), "--weights"),
        (lambda f, t: f.update(weights="gone.pth"), "gone.pth"),
        (lambda f, t: (f.clear(), t.clear(), t.update(x=torch.ones(1))), "unknown kind"),
    ],
)
def test_incomplete_records_are_named(
    change: Change, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([changed(SMALL, "eval_label_A", tmp_path, change)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "held_x" in line


def test_missing_cases_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(FIXTURES), "--case", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
