from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from odise_pl.data.eval_sets import eval_sets
from odise_pl.runs.command_line import expand
from odise_pl.runs.record import evaluation_folder
from odise_pl.runs.settings import data_module

CONF = Path(__file__).parents[2] / "conf"
SHARDS = "data/shards"


def sets(*arguments: str) -> Any:
    """``data.val`` of a command line."""
    return OmegaConf.to_container(composed(*arguments).data, resolve=True)["val"]  # type: ignore[call-overload,index]


def composed(*arguments: str) -> DictConfig:
    """The configuration of a command line."""
    expanded = expand(arguments, CONF)
    assert expand(expanded, CONF) == expanded, "a process that starts others hands on what it expanded"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", ["run_dir=somewhere", *(a for a in expanded if not a.startswith("run=$"))])


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
        ("data=[coco,/x/1,2]", {"coco": f"{SHARDS}/coco_val2017", "%31": "/x/1", "%32": "2"}),
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


FOLDERS = [
    "münchen", "cafe\u0301", "数据", "[x]", "2024_1", "20241", "v1.5", "1.5", "15", "null", "true", "nan",
    "1e3", "0x10", "it's", 'say "x"', "my set", "a,b", "a=b", "a:b", "100%", "%41", "a$b", "${x}", "{a}",
    "back\\slash", "trail\\", ".hidden", "-dash", "--x", "coco", "~x", "#x", "x(1)", "*", "a;b&c",
]  # fmt: skip
LEGIBLE = ("münchen", "café", "数据")
PATHS = ("ckpt", "predictions", "save_predictions", "data.train", "paths.shards", "data.val")


def read(arguments: Sequence[str], option: str) -> Any:
    """An option as Hydra reads it from a command line that is expanded, without all others."""
    expanded = expand(arguments, CONF)
    assert expand(expanded, CONF) == expanded
    overrides = OverridesParser.create().parse_overrides(expanded)
    return OmegaConf.create({"it": next(o.value() for o in overrides if o.key_or_group == option)}).it


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_may_have_any_name(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "dataset.json").touch()
    for place in (f"{tmp_path / folder}{end}" for end in ("", "/", "/dataset.json")):
        value = read([f"data={place}"], "data.val")
        assert [one.shards for one in eval_sets(value).values()] == [place]
        assert all(isinstance(key, str) for key in value)
        assert folder.isascii() or next(iter(eval_sets(value))) in LEGIBLE, "as it is called in tables"


def test_the_data_module_and_the_folder_of_results_know_any_name(tmp_path: Path) -> None:
    for folder in ("münchen", "${x}", "2024_1"):
        (tmp_path / folder).mkdir()
    config = composed(f"data=['{tmp_path}/münchen','{tmp_path}/${{x}}','{tmp_path}/2024_1']")
    sets = data_module(config).sets
    assert {name: one.shards for name, one in sets.items()} == {
        "münchen": f"{tmp_path}/münchen", "x": f"{tmp_path}/${{x}}", "2024_1": f"{tmp_path}/2024_1"
    }  # fmt: skip
    assert evaluation_folder(config, None, "").name == "münchen+x+2024_1-both"


def test_folders_that_are_named_in_a_list_stay_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name for name in FOLDERS if not set(name) & set(",[]{}()'\"=\\$:")]  # as a list has them
    for name in (*names, "COCO", "a/a", "b/a", "A", "ｃ/a"):
        Path(name).mkdir(parents=True)
    listed = [*(name for name in names if name != "coco"), "./coco", "COCO", "a/a", "b/a", "A", "ｃ/a"]
    found = eval_sets(read([f"data=[pc59,{','.join(listed)}]"], "data.val"))
    assert [one.shards for one in found.values()] == listed
    assert len({name.casefold() for name in found}) == len(listed)
    assert {"2024_1", "20241", "v1.5", "1.5", "15", "null", "1e3"} < set(found)
    assert list(eval_sets(composed(f"data=['{tmp_path}/a,b',\"{tmp_path}/it's\"]").data.val)) == [
        "a_b",
        "it_s",
    ]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_path_is_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    for option in PATHS:
        for path in (name, str(tmp_path / name)):
            assert read([f"{option}={path}"], option) == path
        if not name.isascii():
            for path in (f"nowhere/{name}", f"'nowhere/{name}'"):
                assert read([f"{option}={path}"], option) == f"nowhere/{name}"


def test_options_that_are_paths_are_composed(tmp_path: Path) -> None:
    (tmp_path / "2024_1,ü").mkdir()
    config = composed(*(f"{option}={tmp_path}/2024_1,ü" for option in PATHS))
    assert {OmegaConf.select(config, option) for option in PATHS} == {f"{tmp_path}/2024_1,ü"}


@pytest.mark.parametrize("name", ["münchen", "2024_1", "1e3", "true", "a=b", "x(1)"])
def test_runs_and_their_folders_may_have_any_name(name: str) -> None:
    assert read([f"run={name}"], "run") == name
    assert read([f"hydra.run.dir=/x/{name}"], "hydra.run.dir") == f"/x/{name}"


def test_sets_that_are_named_by_hand() -> None:
    by_hand = "data.val={2024_1: /a, 20241: /b, münchen: /c, '15': /d, null: {shards: /ü, short_side: 8}}"
    found = eval_sets(sets("data=shards", by_hand))
    assert list(found) == ["2024_1", "20241", "münchen", "15", "null"]
    assert (found["20241"].shards, found["null"].shards, found["null"].short_side) == ("/b", "/ü", 8)
    assert eval_sets(sets("data.val.münchen={shards: /x, short_side: 8}"))["münchen"].short_side == 8


def test_a_reference_to_the_configuration_stays_one() -> None:
    assert sets("data=${paths.shards}/toy_val") == {"toy_val": f"{SHARDS}/toy_val"}
    for same in (
        "optimizer.lr=1e-4",
        "seed=1_0",
        "data.limit_samples=15",
        "ckpt=null",
        "ckpt=a,b",
        "seed=1,2",
    ):
        assert expand([same], CONF) == [same]


@pytest.mark.parametrize("option", ["vocabulary", "vocabulary.eval"])
def test_the_text_of_a_file_is_a_vocabulary(option: str) -> None:
    for text in ("dog,puppy\ngrass:stuff", "dog,puppy\r\nit's:stuff", "Hündin\n猫"):
        assert read([f"{option}={text}"], "vocabulary.eval") == text
    assert read([f"{option}=[Hündin,'猫,x',dog]"], "vocabulary.eval") == ["Hündin", "猫,x", "dog"]
    assert read([f"{option}=/x/ü.txt"], "vocabulary.eval") == "/x/ü.txt"
