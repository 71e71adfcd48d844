from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from odise_pl.command_line import expand

CONF = Path(__file__).parents[1] / "conf"
SHARDS = "data/shards"


def sets(*arguments: str) -> Any:
    """``data.val`` of a command line."""
    expanded = expand(arguments, CONF)
    assert expand(expanded, CONF) == expanded, "a process that starts others hands on what it expanded"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(
            "evaluate", ["run_dir=somewhere", *(a for a in expanded if not a.startswith("run="))]
        )
    return OmegaConf.to_container(config.data, resolve=True)["val"]  # type: ignore[call-overload,index]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("seed=0", {"coco": f"{SHARDS}/coco_val2017"}),
        ("data=ade847", {"ade847": f"{SHARDS}/ade847_val"}),
        ("data=[coco,pas21]", {"coco": f"{SHARDS}/coco_val2017", "pas21": f"{SHARDS}/pas21_val"}),
        ("data=[coco,/x/toy_open]", {"coco": f"{SHARDS}/coco_val2017", "toy_open": "/x/toy_open"}),
        ("data=[/x/toy_val,/x/toy_open/]", {"toy_val": "/x/toy_val", "toy_open": "/x/toy_open/"}),
        ("data=/x/toy_open/dataset.json", {"toy_open": "/x/toy_open/dataset.json"}),
        ("data=[/x/a,/y/a,/z/a]", {"a": "/x/a", "a_2": "/y/a", "a_3": "/z/a"}),
        ("data=[pc59,/x/pc59]", {"pc59": f"{SHARDS}/pc59_val", "pc59_2": "/x/pc59"}),
        ("data='https://host/my set/dataset.json'", {"my_set": "https://host/my set/dataset.json"}),
        (
            'data=["pipe:aws s3 cp s3://b/it\'s/dataset.json -"]',
            {"it_s": "pipe:aws s3 cp s3://b/it's/dataset.json -"},
        ),
    ],
)
def test_data_is_any_mix_of_names_and_places(argument: str, expected: dict[str, str]) -> None:
    assert sets(argument) == expected


def test_one_unnamed_set_remains() -> None:
    assert sets("data=shards", "data.val=/x/y") == "/x/y"


def test_sweeps_and_what_cannot_be_read_stay() -> None:
    for argument in ("data=coco,ade150", "data=nonsense", "data=[]", "data=[coco", "seed=1,2"):
        assert expand([argument], CONF) == [argument]


def test_a_list_of_one_is_the_one() -> None:
    assert expand(["data=[pc59]"], CONF) == ["data=pc59"], "runs are called after it"


def test_several_sets_get_a_run_of_their_own_unless_it_is_named() -> None:
    several = ["data=[coco,ade150]"]
    assert expand(several, CONF)[-1] == "run=${hydra:runtime.choices.model}_benchmarks"
    assert expand([*several, "run=mine"], CONF) == [*several, "run=mine"]


@pytest.mark.parametrize("value", ["[dog,park bench]", "/x/names.txt", "coco_panoptic", "'[dog, \"a, b\"]'"])
def test_a_vocabulary_is_named_by_itself(value: str) -> None:
    assert expand([f"vocabulary={value}"], CONF) == [f"vocabulary.eval={value}"]
    assert expand(["vocabulary=dataset"], CONF) == ["vocabulary=dataset"]
