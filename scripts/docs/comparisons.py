"""The rows of the small world's tables: what each trains, and the commands for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from odise_pl.runs.conf import CONF
from odise_pl.runs.published import ABLATIONS
from odise_pl.runs.record import relevant_settings

RUNS, WEIGHTS = Path("runs"), Path("odise_pl/toyworld/weights")
NAME = "small_world"
_STEPS_OF_ALL = "trainer.max_steps=400"
_LABEL, _CAPTION = (("experiment=toy", _STEPS_OF_ALL), ("experiment=toy_caption", _STEPS_OF_ALL))
_FIXED_TIME = (*_CAPTION, "captioner.learnable_time=false")
_STEPS = {"0": "[0]", "100": "[100]", "200": "[200]", "500": "[500]", "several": "[0,100,200]"}
TRAININGS = {
    "label": _LABEL,
    "random": (*_LABEL, "backbone.weights=random"),
    "caption": _CAPTION,
    **{f"timestep/{name}": (*_FIXED_TIME, f"backbone.timesteps={steps}") for name, steps in _STEPS.items()},
    "captioner/empty": (*_FIXED_TIME, "captioner=empty"),
    "captioner/heuristic": (
        *(*_FIXED_TIME, "captioner=heuristic"),
        "captioner.vocabulary=data/shards/toy_open/dataset.json",
    ),
}
# Rows of the table of representations: backbone, and the paper's row of the same kind.
REPRESENTATIONS = {
    "labels, convolution": ("toy_supervised_conv", "convnext_xl"),
    "labels, transformer": ("toy_supervised_vit", "deit3_h"),
    "class-conditional diffusion": ("toy_class_conditional_diffusion", "ldm_in1k"),
    "DINO": ("toy_dino", "dino_b"),
    "masked autoencoder": ("toy_mae", "mae_h"),
    "CLIP": ("toy_clip", "clip_l"),
}
_SHIPPED = "toy_clip"
_OURS = "text-conditional diffusion"
TRAININGS |= {
    f"representation/{backbone}": (*_LABEL, f"backbone={backbone}")
    for backbone, _ in REPRESENTATIONS.values()
}
# What one setting at a time gives: its name, the value of all tables, how it is set, and other values.
_LEARNS = "optimizer.lr_scale={{backbone: {}}}"  # trained there: captioner and projections
EFFORT: tuple[tuple[str, float, str, tuple[float, ...]], ...] = (
    ("steps", 400, "trainer.max_steps={}", (100, 200, 800, 1600, 4000)),
    ("queries", 16, "model.head.queries={}", (8, 32, 64)),
    ("learning rate", 1e-3, "optimizer.lr={}", (3e-4, 3e-3)),
    ("times that rate for captioner and projections", 1, _LEARNS, (0.1, 0.3, 3)),
    ("pixels of input", 128, "backbone.input_size={}", (256,)),
)
_START = ", ".join(f"{value:g} {name}" for name, value, _, _ in EFFORT)
_EFFORTS = {
    f"{value:g} {name}": setting.format(value) for name, _, setting, values in EFFORT for value in values
}
_EFFORT_FOLDERS = {name: f"effort/{name.replace(' ', '_')}" for name in _EFFORTS}
TRAININGS |= {_EFFORT_FOLDERS[name]: (*_LABEL, setting) for name, setting in _EFFORTS.items()}
# From the network of all tables to the demo's: what each change gives in as many steps.
_LIGHT = ("captioner=empty", "model.head.layers=3", "backbone.channels=128")
_MUON = ("optimizer=muon", "optimizer.muon_scale=5", "optimizer.power=1")
RECIPE = {
    "empty text, 3 layers of 6, 128 channels of 256": ("light", (*_LABEL, *_LIGHT)),
    "the same with Muon and a linear decay": ("muon", (*_LABEL, *_LIGHT, *_MUON)),
    "the same with CLIP's features: the demo's network": ("demo", ("experiment=[toy,demo]", _STEPS_OF_ALL)),
}
TRAININGS |= {f"recipe/{folder}": settings for folder, settings in RECIPE.values()}
# Presets with parts of the small world, and its own models, trained equally long on equally large pictures.
_TOY: Any = OmegaConf.to_container(OmegaConf.load(CONF / "experiment" / "toy.yaml"))
_SETTINGS = {key: f"{key}={value}" for key, value in relevant_settings(_TOY).items()}
_HEAD = [v for k, v in _SETTINGS.items() if k.startswith("model.head.") and k != "model.head.embed_dim"]
BUDGET = [v for k, v in _SETTINGS.items() if k.startswith(("optimizer.", "data."))]
BUDGET += ["data.image_size=128", "data.eval_short_side=128", "global_batch=8", _STEPS_OF_ALL]
_RESNET = "backbone=toy_supervised_conv"
_PROMPT = "prompts=single"  # the small CLIPs have not read those of the presets
_CONV_CLIP = ("clip=toy_conv", "backbone.window=whole", _PROMPT)
# rates of AdamW, which all have, in place of those of SGD
_DENSE = (
    "optimizer=adamw",
    "optimizer.power=0.9",
    "++optimizer.lr_scale={backbone.features: 0.1, pixel_decoder: 1, mask_decoder: 1}",
)
METHODS = {
    "fc_clip": ("experiment=toy", *_CONV_CLIP),
    "fc_clip_caption": ("experiment=toy_caption", "model=odise_caption", *_CONV_CLIP),
    "ovrcoat": ("experiment=toy", *_CONV_CLIP),
    "maskclip_proposals": ("experiment=toy", _RESNET),
    "maskclip": ("experiment=toy", _RESNET),
    "simbaseline": ("experiment=toy", _RESNET, "clip=toy", _PROMPT),
    "zegformer": ("experiment=toy", _RESNET, "clip=toy", _PROMPT),
    "openseg": ("experiment=toy_caption", _RESNET, _PROMPT),
    "mask2former": ("experiment=toy", _RESNET),
    "lseg": ("experiment=toy", "backbone=toy_clip", "clip=toy", *_DENSE),
    "lseg_plus": ("experiment=toy", _RESNET, _PROMPT, *_DENSE),
    "spnet_clip_text": ("experiment=toy", _RESNET, *_DENSE),
    "zs3net_seen_clip_text": ("experiment=toy", _RESNET, *_DENSE),
    "zs3net_clip_text": ("experiment=toy", _RESNET),
    "best": (
        "experiment=toy",
        "backbone@backbone.first=toy",
        "backbone@backbone.second=toy_supervised_conv",
        "backbone.input_size=128",
        "backbone.window=128",
    ),
    "groupvit": ("backbone=toy_groupvit", "data=toy", "trainer=cpu", "model.inference.window=128"),
}
METHOD_FOLDERS = {"odise_label": "label", "odise_caption": "caption"} | {n: f"method/{n}" for n in METHODS}
_FIRST_STAGES = {"maskclip": "maskclip_proposals", "zs3net_clip_text": "zs3net_seen_clip_text"}
# The folders of each table. Captioners are compared with timestep/0, which does not learn the time either;
# classifiers are evaluated on caption.
TABLES = {
    "supervision": ("label", "random", "caption"),
    "timestep": ("timestep", "caption"),
    "captioner": ("captioner", "timestep/0", "caption"),
    "classifier": ("classifier",),
    "representation": ("representation", "label", "random"),
    "effort": ("effort", "label"),
    "recipe": ("recipe", "label"),
    "method": ("method", "label", "caption"),
}
_TRAINED_ON = {
    "representation": [n.removeprefix("toy_") for n, _ in REPRESENTATIONS.values() if n != _SHIPPED],
    "method": ["supervised_conv", "clip_conv"],
}
# Tables whose rows are folders: the row of comparison, and folder and paper's row of each.
FOLDERS: dict[str, tuple[str, dict[str, tuple[str, str | None]]]] = {
    "representation": (
        _OURS,
        {
            **{name: (f"representation/{own}", paper) for name, (own, paper) in REPRESENTATIONS.items()},
            _OURS: ("label", "stable_diffusion_v1"),
            f"{_OURS}, untrained": ("random", None),
        },
    ),
    "effort": (
        _START,
        {_START: ("label", None), **{name: (folder, None) for name, folder in _EFFORT_FOLDERS.items()}},
    ),
    "recipe": (
        _LABEL[0],
        {_LABEL[0]: ("label", None), **{name: (f"recipe/{own}", None) for name, (own, _) in RECIPE.items()}},
    ),
    "method": ("odise_label", {name: (folder, name) for name, folder in METHOD_FOLDERS.items()}),
}
# The paper's rows and those of methods, by name.
PUBLISHED = {
    name: row for one in ABLATIONS if one.name in ("backbone", "method") for name, row in one.rows.items()
}


def commands(tables: Sequence[str], seeds: Sequence[int]) -> Iterator[list[str]]:
    """The commands that paint, pre-train what is missing, train and evaluate, in their order."""
    yield ["odise", "toyworld", "make"]
    for kind in dict.fromkeys(kind for table in tables for kind in _TRAINED_ON.get(table, ())):
        if not any((WEIGHTS / "representations").glob(f"{kind}*")):
            yield ["python", "-m", "scripts.pretrain_toyworld", "representation", kind, "--out", str(WEIGHTS)]
    folders = {folder for table in tables for folder in TABLES[table]}
    folders |= {"caption"} if "classifier" in tables else set()
    for seed in seeds:
        for name, settings in TRAININGS.items():
            if folders & {name, name.partition("/")[0]}:
                yield [*_train(name, seed), *settings]
        for name, settings in METHODS.items() if "method" in tables else ():
            own = [f"method={name.removesuffix('_caption')}"]
            if name in _FIRST_STAGES:
                own += [f"init_from={_folder(f'method/{_FIRST_STAGES[name]}', seed)}"]
            own += [] if name == "groupvit" else _HEAD  # it has no such head
            yield [*_train(f"method/{name}", seed), *own, *settings, *BUDGET]
        if "classifier" in tables:
            run, checkpoint = f"run={NAME}/classifier/seed_{seed}", f"ckpt={_folder('caption', seed)}"
            classifiers = "classifier=discriminative,diffusion,both"
            yield ["odise", "evaluate", "-m", run, checkpoint, "data=toy", "trainer=cpu", classifiers]


def _folder(name: str, seed: int) -> Path:
    return RUNS / NAME / name / f"seed_{seed}"


def _train(name: str, seed: int) -> list[str]:
    return ["odise", "train", f"run={_folder(name, seed).relative_to(RUNS)}", f"seed={seed}"]
