"""The command: what it understands, what it refuses, and what it advises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planned
import pytest

from odise_pl.errors import SettingError
from odise_pl.plan import __main__ as command
from odise_pl.plan.__main__ import case_of, configuration, main, sizes
from odise_pl.plan.fitting import GIB, Need, fits, need, remedy
from odise_pl.plan.report import Column, sent, setting
from odise_pl.plan.simulation import Case, Memory, StepCost
from odise_pl.plan.traffic import Traffic


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("devices=none", "trainer.devices=none"),
        ("devices=0", "trainer.devices=0"),
        ("nodes=1.5", "trainer.num_nodes=1.5"),
        ("batch=-1", "data.batch_size=-1"),
        ("batch=5", "data.batch_size"),
        ("precision=64-true", "trainer.precision=64-true"),
        ("memory=lots", "memory=lots"),
        ("memory=[24,0]", "memory=[24,0]"),
        ("image=512", "image"),
        ("backbone=sdxl", "sdxl"),
        ("backbone.timesteps=[2000]", "2000"),
        ("backbone.input_size=100", "backbone.input_size=100"),
        ("model.head.channels=100", "model.head.channels=100"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(wrong: str, named: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--conf", str(planned.CONF), *planned.SMALL, wrong])
    assert str(ended.value).startswith("error: ")
    assert named in str(ended.value)
    assert "Traceback" not in str(ended.value)


def test_blip_on_the_fly_cannot_be_planned() -> None:
    with pytest.raises(SettingError, match=r"captioner\.on_the_fly"):
        planned.config("captioner=blip", "captioner.on_the_fly=true")


def test_a_folder_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"train\.yaml"):
        configuration([], tmp_path)


def test_the_published_run_needs_no_weights_to_be_planned() -> None:
    config = configuration(["devices=4", "nodes=2", "trainer=fsdp"], planned.CONF)
    single, fsdp = case_of(config, "single"), case_of(config, "fsdp")
    assert single == Case("single", batch=2, accumulate=32)
    assert fsdp == Case("fsdp", devices=4, nodes=2, batch=2, accumulate=4)
    assert case_of(configuration([], planned.CONF), "ddp").devices == command.DEVICES
    assert not case_of(configuration(["trainer=cpu"], planned.CONF), "single").gpu
    across = ["trainer=fsdp", "devices=4", "nodes=2", "trainer.strategy.across_nodes=true"]
    assert case_of(configuration(across, planned.CONF), "fsdp").across_nodes


def test_sizes_of_devices_are_one_or_many() -> None:
    assert sizes("12") == (12,)
    assert sizes("[80,24.5]") == (80, 24.5)


def cost(case: Case) -> int:
    """3 GiB, and 7 for every image, less where it is computed twice, a little less with few windows."""
    image = 4 if case.checkpoint_activations else 7
    return int((3 + image * case.batch - (0.5 if case.window_batch else 0)) * GIB)


def test_what_an_image_needs_says_how_many_fit() -> None:
    needed = need(Case(), cost)
    assert needed == Need(3 * GIB, 7 * GIB)
    assert [needed.images(memory) for memory in (80, 24, 12, 11)] == [9, 2, 1, 0]
    assert fits(cost(Case()), 12)
    assert not fits(cost(Case()), 11.5)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (24, "data.batch_size=2"),
        (12, "data.batch_size=1"),
        (9, "data.batch_size=1 backbone.checkpoint_activations=true"),
        (8, "data.batch_size=1 backbone.checkpoint_activations=true backbone.window_batch=1"),
        (7, None),
    ],
)
def test_the_least_change_that_fits_is_advised(memory: float, said: str | None) -> None:
    found = remedy(Case(batch=4, accumulate=2), 8, memory, cost)
    assert (found and setting(found)) == said
    assert found is None or found.batch * found.accumulate == 8


def test_rings_send_a_part_of_what_they_carry() -> None:
    memory, traffic = Memory(*[0] * 7), Traffic(gathered=800, reduced=160, broadcast=5)
    case = Case("fsdp", devices=4, nodes=2)
    assert sent(Column(case, StepCost(memory, traffic))) == 600 + 280 + 5
    across = replace(case, across_nodes=True)
    assert sent(Column(across, StepCost(memory, traffic))) == 700 + 280 + 5


def test_the_command_prints_costs_side_by_side_and_what_to_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def simulated(build: Any, case: Case) -> StepCost:
        return StepCost(Memory(3 * GIB, 0, 0, 0, cost(case) - 3 * GIB, 0, 0), Traffic(reduced=GIB))

    monkeypatch.setattr(command, "simulate", simulated)
    assert main(["--conf", str(planned.CONF), "memory=12", "devices=4"]) == 0
    said = capsys.readouterr().out
    assert "1024 x 1024, batch 2 on each GPU, all windows at once, bf16-mixed" in said
    assert "ddp, 4 devices" in said
    assert "17.00" in said
    assert "single fits with data.batch_size=1 (10.00 GiB)" in said
    assert main(["--conf", str(planned.CONF), "memory=[80,12]", "devices=4"]) == 0
    said = capsys.readouterr().out
    assert "| single " in said
    assert "8 |" in said, "nine fit, and eight divide 64"
