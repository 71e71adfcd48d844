import os
from pathlib import Path

import pytest
from hypothesis import settings
from scenes import make_scenes

# No test may use the network.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "disabled"}

# Models are so small that threads would slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadlines, because the machine may be loaded; always the same examples, so that failures repeat.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


# The longest files run first: started last, they would leave the other worker idle.
LONGEST = (
    "test_interruption",
    "test_parallel",
    "test_train",
    "test_faults",
    "test_demo",
    "test_notebooks",
    "test_methods",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def scene_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of eight generated scenes; not to be changed."""
    from odise_pl.data.prepare.coco import read_coco
    from odise_pl.data.prepare.packing import prepare

    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(folder / "coco", 8)
    prepare(read_coco(folder / "coco", "train2017"), folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="session")
def checkpoint(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network after a few steps on the scenes; not to be changed."""
    from small_runs import SMALL, composed

    from odise_pl.training.run import train

    folder = tmp_path_factory.mktemp("trained")
    fit = ["trainer.max_steps=4", "validate_every=100", f"data.train={scene_shards}"]
    fit += ["~callbacks.report", "~callbacks.pictures"]
    train(composed("train", folder, [*SMALL, *fit]))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def benchmark_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six benchmarks from miniature layouts, where ``paths.shards`` expects them; not to be changed."""
    from benchmark_shards import prepare_benchmarks

    return prepare_benchmarks(tmp_path_factory.mktemp("benchmarks"))
