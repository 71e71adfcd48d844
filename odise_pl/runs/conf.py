"""Where the configuration lies, in the repository and in an installed package, and how it is composed."""

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

# In conf/, ${package:NAME} is a file or folder of this package; ${choice:GROUP} is the choice of a group, or
# "several", as in data=[coco,ade150].
OmegaConf.register_new_resolver("package", lambda name: str(_PACKAGE / name), replace=True)
OmegaConf.register_new_resolver(
    "choice", lambda group: HydraConfig.get().runtime.choices.get(group, "several"), replace=True
)


def compose_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """``conf/NAME.yaml`` composed outside of a program of Hydra's; set ``run_dir`` among the overrides.

    Raises:
        SettingError: Hydra cannot read the overrides, or knows no such choice.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, list(overrides))
    except HydraException as error:
        raise SettingError(f"{' '.join(overrides)}: {error}") from error
