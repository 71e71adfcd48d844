"""A checkpoint may come from anyone: what its record of settings may choose, and what it may not."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from trained import ROOT, composed

from odise_pl.checkpoints.reading import describe
from odise_pl.checkpoints.record import COMMANDS, TARGETS, keep_section, refuse_strange
from odise_pl.errors import SettingError, UserError
from odise_pl.models.weights import WeightsError
from odise_pl.prediction.command import load_segmenter
from odise_pl.runs.settings import adopt, check_weights, record

CONF = ROOT / "conf"
GROUPS = ("backbone", "clip", "captioner", "model")
Change = Callable[[dict[str, Any]], object]


def targets(values: Any, place: str = "") -> set[tuple[str, str]]:
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    found = {(place[1:], values["_target_"])} if isinstance(values, dict) and "_target_" in values else set()
    return found.union(*(targets(value, f"{place}.{key}") for key, value in items))


def test_every_choice_of_ours_and_no_other_target_is_allowed() -> None:
    found: set[tuple[str, str]] = set()
    commands: set[str] = set()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for group in GROUPS:
            for path in (CONF / group).glob("*.yaml"):
                kept = record(compose("train", ["run=x", "run_dir=x", f"{group}={path.stem}"]))
                refuse_strange(kept, (), "ours")
                commands |= {s["source"] for s in kept["config"].values() if "source" in s}
                found |= targets(kept["config"])
    assert commands == COMMANDS
    assert found == {(place, name) for place, names in TARGETS.items() for name in names}


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of a checkpoint whose content is changed."""

    def change(edit: Change) -> Path:
        content = torch.load(checkpoint, weights_only=True)
        edit(content)
        torch.save(content, tmp_path / "odd.ckpt")
        return tmp_path / "odd.ckpt"

    return change


def put(*path: str, value: Any) -> Change:
    def change(content: Any) -> None:
        for key in ("odise", "record", *path[:-1]):
            content = content[key]
        content[path[-1]] = value

    return change


NESTED: Any = []
for _ in range(5000):
    NESTED = [NESTED]
MKDIR = {"_target_": "os.mkdir", "path": "PROOF"}
HOSTILE = [
    (("config", "model", "_target_"), "os.mkdir"),
    (("config", "model", "head"), MKDIR),
    (("config", "model", "head", "_target_"), "odise_pl.models.build.load_diffusion"),
    (("config", "backbone"), MKDIR),
    (("config", "backbone", "_target_"), ["os.mkdir"]),
    (("config", "backbone", "timesteps"), [0, MKDIR]),
    (("config", "backbone", "more"), [[{"deep": MKDIR}]]),
    (("config", "captioner", "_target_"), "builtins.eval"),
    (("config", "captioner", "_args_"), ["PROOF"]),
    (("config", "captioner", "_partial_"), True),
    (("config", "captioner", "_convert_"), "all"),
    (("config", "captioner", "_recursive_"), False),
    (("config", "fusion", "_target_"), "os.mkdir"),
    (("config", "fusion", "mask_prompt"), "${oc.env:HOME}"),
    (("config", "fusion", "mask_prompt"), "\\${oc.env:HOME}"),
    (("config", "fusion", "mask_prompt"), "$"),
    (("config", "backbone", "weights"), "${paths.weights}/${oc.env:HOME}"),
    (("config", "backbone", "weights"), "${oc.create:{_target_:os.mkdir}}"),
    (("config", "backbone", "weights"), "${hydra:runtime.cwd}/x.ckpt"),
    (("config", "backbone", "weights"), "${trainer.accelerator}.ckpt"),
    (("config", "backbone", "weights"), None),
    (("config", "backbone", "weights.x"), MKDIR),  # not a key below the one that the command line names
    (("config", "clip", "weights"), torch.ones(2)),
    (("config", "trainer"), MKDIR),
    (("config", "progress"), MKDIR),
    (("config", "paths"), {"weights": "elsewhere"}),
    (("config", "clip"), "${captioner}"),
    (("config", "clip"), [MKDIR]),
    (("data", "_target_"), "os.mkdir"),
    (("data", "val"), "pipe:mkdir PROOF"),
    (("data", "eval_short_side"), "${oc.env:HOME}"),
    (("data", "eval_short_side"), MKDIR),
    (("config",), [MKDIR]),
    (("data",), [MKDIR]),
]


def placed(value: Any, proof: Path) -> Any:
    if isinstance(value, dict):
        return {key: placed(one, proof) for key, one in value.items()}
    if isinstance(value, list):
        return [placed(one, proof) for one in value]
    return value.replace("PROOF", str(proof)) if isinstance(value, str) else value


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=str)
def test_a_checkpoint_chooses_nothing_but_settings(
    changed: Callable[[Change], Path], tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    proof = tmp_path / "proof"
    odd = changed(put(*path, value=placed(value, proof)))
    with pytest.raises(
        UserError, match=rf"odd\.ckpt.*{path[-1]}|odd\.ckpt: its record of settings is damaged"
    ):
        load_segmenter(odd, ["trainer=cpu", "clip.source=x"], CONF, "cpu")
    assert not proof.exists()


@pytest.mark.parametrize(("path", "value"), [HOSTILE[0], HOSTILE[23], HOSTILE[29]], ids=str)
def test_evaluation_refuses_it_as_well(
    changed: Callable[[Change], Path], scene_shards: Path, tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    import evaluate

    odd = changed(put(*path, value=placed(value, tmp_path / "proof")))
    overrides = [f"ckpt={odd}", f"data={scene_shards}", "trainer=cpu"]
    with pytest.raises(SettingError, match=rf"odd\.ckpt.*{path[-1]}"):
        evaluate.evaluate(composed("evaluate", tmp_path / "run", overrides), overrides)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("step", ["../../x", 1.5, True, [1]], ids=str)
def test_the_step_that_names_a_folder_is_a_number(changed: Callable[[Change], Path], step: Any) -> None:
    with pytest.raises(WeightsError, match=r"odd\.ckpt.*step"):
        describe(changed(lambda content: content.update(global_step=step)))


@pytest.mark.parametrize(
    "odise",
    [[], {"record": {}}, {"vocabulary": {"name": "x", "categories": [{}]}, "record": {}}, {"vocabulary": 3}],
    ids=str,
)
def test_a_damaged_description_is_named(changed: Callable[[Change], Path], odise: Any) -> None:
    with pytest.raises(WeightsError, match=r"odd\.ckpt"):
        describe(changed(lambda content: content.update(odise=odise)))


def kept(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    return record(composed("train", tmp_path, list(overrides)))


def test_what_the_command_line_names_is_the_users(tmp_path: Path) -> None:
    odd = kept(tmp_path)
    odd["config"]["captioner"] = {"_target_": "mine.captioner", "more": {"_target_": "os.mkdir"}}
    config = composed("evaluate", tmp_path, ["+captioner.more=1", "captioner._target_=mine.captioner"])
    with pytest.raises(SettingError, match=r"c\.ckpt.*captioner\._target_='mine\.captioner'"):
        adopt(config, odd, ["+captioner.more=1"], "c.ckpt")
    merged = adopt(config, odd, ["+captioner.more=1", "captioner._target_=mine.captioner"], "c.ckpt")
    assert merged.captioner == {"_target_": "mine.captioner", "more": 1}
    adopt(config, odd, ["captioner=empty"], "c.ckpt")


@pytest.mark.parametrize("name", ["backbone", "clip", "captioner"])
def test_a_checkpoint_downloads_nothing(tmp_path: Path, name: str) -> None:
    odd = kept(tmp_path, "captioner=blip", "captioner.on_the_fly=true")
    odd["config"][name]["weights"] = "someone/model"
    config = composed("evaluate", tmp_path, [])
    with pytest.raises(SettingError, match=rf"c\.ckpt names {name}\.weights=someone/model"):
        adopt(config, odd, [], "c.ckpt")
    named = composed("evaluate", tmp_path, [f"++{name}.weights=someone/model"])
    assert adopt(named, odd, [f"{name}.weights=someone/model"], "c.ckpt")[name].weights == "someone/model"
    odd["config"][name]["weights"] = str(tmp_path)
    assert adopt(config, odd, [], "c.ckpt")[name].weights == str(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        "curl host | sh",
        "hf download a/b --local-dir ~",
        "hf download evil/sd sd-v1-3.ckpt --local-dir ${paths.weights}",
        "hf download CompVis/stable-diffusion-v-1-3-original other.ckpt --local-dir ${paths.weights}",
        "python -m odise_pl.toyworld.pretrain vae",
        "hf download a/b c --local-dir ${paths.weights}; rm x",
        "hf download a/b --local-dir ${paths.weights}/../x",
        "python -m odise_pl.toyworld.pretrain clip && rm x",
        "\x1b[2J",
        5,
    ],
    ids=ascii,
)
def test_no_command_of_a_checkpoint_is_shown(tmp_path: Path, command: Any) -> None:
    odd = kept(tmp_path)
    weights = str(tmp_path / "gone.ckpt")
    odd["config"]["backbone"] |= {"source": command, "weights": weights}
    merged = adopt(composed("evaluate", tmp_path, ["trainer=cpu"]), odd, [], "c.ckpt")
    with pytest.raises(SettingError, match=rf"backbone\.weights={weights} is not there; set ") as error:
        check_weights(merged)
    assert str(command) not in str(error.value).replace(str(tmp_path), "")


DAMAGED: list[tuple[tuple[str, ...], Any]] = [
    (("backbone", "weights"), "${backbone.weights}"),
    (("backbone", "weights"), "${clip.weights}${backbone.weights}"),
    (("backbone", "weights"), "${paths}"),
    (("backbone", "weights"), "${paths.nowhere}/x.ckpt"),
    (("backbone", "weights"), "???"),
    (("backbone", "weights"), "a\nb.ckpt"),
    (("backbone", "weights"), "\x1b[2Jb.ckpt"),
    (("backbone", "architecture"), "${paths}"),
    (("backbone", "timesteps"), "${backbone.timesteps}"),
    (("model", "head"), "${paths}"),
    (("model", "head"), "${model}"),
    (("model", "head"), "x"),
    (("model", "head"), "${backbone.architecture}"),
    (("model", "head"), None),
    (("model", "backbone"), "${clip}"),
    (("model", "clip"), 5),
    (("model", "captioner"), {"weights": "x"}),
    (("clip",), {}),
    (("backbone", "more"), NESTED),
]


@pytest.mark.parametrize(("path", "value"), DAMAGED, ids=lambda value: reprlib.repr(value))
def test_a_record_that_describes_no_network_is_named(
    tmp_path: Path, path: tuple[str, ...], value: Any
) -> None:
    odd = kept(tmp_path)
    put(*path, value=value)({"odise": {"record": odd["config"]}})
    with pytest.raises(SettingError, match=rf"c\.ckpt.*{path[0]}|c\.ckpt.* damaged") as error:
        adopt(composed("evaluate", tmp_path, []), odd, [], "c.ckpt")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["backbone", "clip", "captioner"])
@pytest.mark.parametrize("absent", ["weights", "source", None])
def test_weights_are_named_by_the_record_or_the_user(tmp_path: Path, name: str, absent: str | None) -> None:
    odd = kept(tmp_path, "captioner=blip", "captioner.on_the_fly=true")
    section = odd["config"][name]
    section["weights"] = "evil/blip.bin" if absent == "source" else "x" * 5000
    section.pop(absent, None)
    config = composed("evaluate", tmp_path, [])
    with pytest.raises(SettingError, match=rf"{name}\.weights"):
        check_weights(adopt(config, odd, [], "c.ckpt"))
    if absent == "weights":
        named = composed("evaluate", tmp_path, [f"++{name}.weights={tmp_path}"])
        assert adopt(named, odd, [f"{name}.weights={tmp_path}"], "c.ckpt")[name].weights == str(tmp_path)


def test_a_captioner_is_never_random(tmp_path: Path) -> None:
    odd = kept(tmp_path, "captioner=blip", "captioner.on_the_fly=true")
    odd["config"]["captioner"]["weights"] = "random"  # an id of the hub like any other
    with pytest.raises(SettingError, match=r"c\.ckpt.*captioner\.weights=random"):
        adopt(composed("evaluate", tmp_path, []), odd, [], "c.ckpt")


def test_a_record_holds_no_interpolation_that_is_not_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here")
    config = OmegaConf.create(
        {
            "paths": {"weights": "w"},
            "backbone": {
                "weights": "${oc.env:PLACE}/sd.ckpt",
                "source": "${paths.weights}/x",
                "steps": [0, "${oc.decode:'[1, 2]'}"],
                "architecture": {"heads": "${.width}", "width": 4},
            },
        }
    )
    before = copy.deepcopy(config)
    assert keep_section(config.backbone) == {
        "weights": "here/sd.ckpt",
        "source": "${paths.weights}/x",
        "steps": [0, [1, 2]],
        "architecture": {"heads": 4, "width": 4},
    }
    assert config == before


def test_a_setting_of_another_version_is_named(changed: Callable[[Change], Path]) -> None:
    from odise_pl.runs.settings import clear_errors

    odd = changed(put("config", "backbone", "novelty", value=1))
    with pytest.raises(SystemExit, match=r"(?s)error: .*BackboneSettings.*novelty"), clear_errors():
        load_segmenter(odd, ["trainer=cpu"], CONF, "cpu")
