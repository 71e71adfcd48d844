"""Every command in the documentation parses."""

import re
import shlex
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, BadCommand, check, commands

PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "notebooks/README.md")),
        *ROOT.glob("data/**/*.md"),
        *ROOT.glob("docs/*.md"),
    )
)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_of_a_page_parse(page: Path) -> None:
    wrong = []
    for words, complete in commands((ROOT / page).read_text(encoding="utf-8")):
        try:
            check(words, complete)
        except BadCommand as error:
            wrong.append(f"{shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_common_changes_compose() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = page.split("## Common changes")[1].split("##")[0]
    changes = re.findall(r"`([^`]+=[^`]+|~\w+)`", table)
    assert len(changes) > 20
    for change in changes:
        check(["python", "train.py", *change.split()])


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("odise predict CKPT photo.jpg --word dog", "--word"),
        ("odise predict CKPT --words dog", "PICTURE"),
        ("odise predikt CKPT", "predikt"),
        ("odise kmeans IMAGE --clusters many", "--clusters"),
        ("odise train optimiser.lr=1", "optimiser"),
        ("python train.py backbone=huge", "huge"),
        ("python train.py -m backbone=toy,huge", "huge"),
        ("python train.py -m 'optimizer.lr=1,2' optimizer.rate=1", "optimizer.rate"),
        ("python train.py --devices 8", "--devices"),
        ("torchrun --nproc-per-node=8 train.py trainer=dpp", "dpp"),
        ("sbatch scripts/train.sbatch trainer=dpp", "dpp"),
        ("python evaluate.py global_batch=8", "global_batch"),
        ("python evaluate.py optimizer=adamw", "optimizer"),
        ("python train.py experiment=[toy,toi]", "toi"),
        ("python train.py captioner.top=3", "captioner.top"),
        ("python scripts/missing.py", "missing.py"),
        ("python -m scripts.bench_painting --colour red", "--colour"),
        ("python -m scripts.missing", "scripts.missing"),
        ("make tests", "tests"),
        ("make test ARG=1", "ARG"),
        ('make train ARGS="trainer=dpp"', "dpp"),
        ("make demo ARGS=kaption", "kaption"),
    ],
)
def test_checker_refuses_a_misspelt_command(command: str, named: str) -> None:
    with pytest.raises(BadCommand, match=named):
        check(shlex.split(command))


@pytest.mark.parametrize(
    "command",
    [
        "odise predict runs/NAME photo.jpg holiday/ --words 'dog,grass:stuff' --set clip.weights=FILE",
        "odise --help",
        "odise prepare SOURCE",
        "python train.py GROUP=CHOICE KEY=VALUE backbone=NAME",
        "python train.py --cfg job --resolve --package backbone experiment=laptop",
        "python train.py '+backbone.architecture.heads=4' ~logger hydra/launcher=slurm",
        "python train.py data=shards 'data.val={NAME: DIR}'",
        "python train.py captioner=heuristic captioner.top=3,5 experiment=[toy,ablation_timestep]",
        "python -m tests.parity DIR",
        "docker run --anything",
    ],
)
def test_checker_accepts_placeholders_and_other_programs(command: str) -> None:
    check(shlex.split(command))


def test_shell_blocks_are_split_into_commands() -> None:
    page = """
    Text with `make lint`, ``odise `x` `` and `odise prepare
    coco ...`.

    ```bash
    fixed="seed=0,1 captioner=empty"   # a comment
    CUDA_VISIBLE_DEVICES=0 odise train -m $fixed 'run=a b' \\
        trainer=ddp && odise report runs > report.md 2>&1 | tail -1
    for seed in 1 2; do make train ARGS="seed=$seed"; done
    ```

    ```yaml
    odise: no command
    ```
    """.replace("\n    ", "\n")
    assert list(commands(page)) == [
        (["make", "lint"], False),
        (["odise", "prepare", "coco", "..."], False),
        (["odise", "train", "-m", "seed=0,1", "captioner=empty", "run=a b", "trainer=ddp"], True),
        (["odise", "report", "runs"], True),
        (["tail", "-1"], True),
        (["for", "seed", "in", "1", "2"], True),
        (["make", "train", "ARGS=seed=1"], True),
        (["done"], True),
    ]
