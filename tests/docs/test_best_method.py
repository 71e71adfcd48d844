"""The search for the best combination of settings on the small world."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts.docs import best_method
from scripts.docs.best_method import DECIDES, ROUNDS, search
from tests.docs.commands import check

GOOD = {"backbone=two": 3.0, "model.head.queries=32": 1.0, "fusion.objectness_share=0.5": 2.0}
GOOD |= {"backbone=toy_supervised_conv": 2.0, "fusion.objectness_share=0.25": 1.0}


@pytest.mark.slow
def test_rounds_keep_what_improves_novel_classes() -> None:
    commands: dict[Path, list[str]] = {}
    known: dict[Path, float] = {}

    def score(folder: Path, command: list[str]) -> Mapping[str, float]:
        check(command)
        commands[folder] = command
        start = [Path(word.removeprefix("ckpt=")) for word in command if word.startswith("ckpt=")]
        known[folder] = sum(GOOD.get(word, -1e-3) for word in command) + sum(known[one] for one in start)
        return {DECIDES: known[folder]}

    rows = search(score)
    assert [row["name"] for row in rows if row["taken"]] == [
        best_method.START,
        "trained convolutions",
        "32 queries",
        "the diffusion model",
        "COAT, 0.5",
    ]
    assert len(rows) == 1 + sum(len(one.candidates) for one in ROUNDS.values())
    last = next(words for folder, words in commands.items() if folder.parent.name == "share")
    assert last[1] == "evaluate"
    assert "fusion.objectness_share=0.5" in last
    assert "ckpt=runs/best_method/second_network/the_diffusion_model" in last
    jitter = next(words for folder, words in commands.items() if folder.name == "stronger_colour_jitter")
    assert {"backbone=toy_supervised_conv", "model.head.queries=32"} <= {*jitter}
    assert jitter.index("data.color_jitter=0.3") < jitter.index("data.color_jitter=0.6")
