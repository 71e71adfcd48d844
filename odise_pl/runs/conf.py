"""The folder of the configuration, in the repository or the installed package, and its composition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from odise_pl.errors import SettingError

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "conf"

# In conf/, ${package:NAME} is the path of a file of this package, and ${choice:GROUP,...} the choice of the
# first of these groups that has one, or "several" as for data=[coco,ade150].
OmegaConf.register_new_resolver("package", lambda name: str(_PACKAGE / name), replace=True)
OmegaConf.register_new_resolver("choice", lambda *groups: _choice(groups), replace=True)


def _choice(groups: Sequence[str]) -> str:
    choices = HydraConfig.get().runtime.choices
    return next((choices[group] for group in groups if choices.get(group)), "several")


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``conf/NAME.yaml`` outside of a Hydra program; the overrides have to set ``run_dir``.

    Raises:
        SettingError: an override is malformed or its choice does not exist.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, list(overrides))
    except HydraException as error:
        raise SettingError(f"{' '.join(overrides)}: {error}") from error
