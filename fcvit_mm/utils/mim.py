"""Configs, tools and model index, which travel with the package in `.mim`, as OpenMMLab's own do.

A config of any directory inherits from ours with `_base_ = "fcvit_mm::detection/NAME.py"`.
"""

from difflib import get_close_matches
from pathlib import Path

from mmengine.config import Config

MIM = Path(__file__).parents[1] / ".mim"
PREFIX = "fcvit_mm::"


def config_path(name: str) -> str:
    """Return the path of a config of the package.

    Args:
        name: path below configs/, such as "detection/mask_rcnn_fcvit_s12_coco.py".

    Raises:
        FileNotFoundError: unknown name; says the nearest.
    """
    configs = MIM / "configs"
    path = configs / name
    if not path.is_file():
        names = [str(path.relative_to(configs)) for path in configs.glob("[!_]*/*.py")]
        nearest = "".join(get_close_matches(name, names, n=1, cutoff=0))
        raise FileNotFoundError(
            f"{PREFIX}{name}: unknown config; did you mean {PREFIX}{nearest}? All are in {configs}"
        )
    return str(path)


def install() -> None:
    """Have MMEngine read `fcvit_mm::...` in a `_base_`; a second call does nothing.

    NOTE: MMEngine would build what is inherited from a package in the scope of its registries; our
    configs name the scope that they need themselves.
    """
    original = Config._get_cfg_path
    if original.__module__ == __name__:
        return

    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith(PREFIX):
            return config_path(cfg_path.removeprefix(PREFIX)), None
        return original(cfg_path, filename)

    Config._get_cfg_path = staticmethod(get_cfg_path)
