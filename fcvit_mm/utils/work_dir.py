"""Find config and checkpoint in the work directory of a training, or in a published folder."""

from pathlib import Path

from .errors import ConfigError

# The weights that `fcvit publish` writes.
PUBLISHED = "model.safetensors"


def find_config(folder: str | Path) -> Path:
    """Return the config that a training has written into its work directory.

    Raises:
        ConfigError: the directory has none, or several.
    """
    found = _newest_first(folder, "*.py")
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found)) or "none"
        raise ConfigError(
            f"{folder} is no work directory of one training, which has one config; here: {names}. "
            "Name a config, and a checkpoint where one is needed"
        )
    return found[0]


def find(folder: str | Path) -> tuple[Path, Path]:
    """Return config and checkpoint of a work directory: the best, or else the newest checkpoint.

    Or those of a folder that `fcvit publish` wrote.

    All are whole, since they are written under another name first; whoever reads one finds out
    whether it was damaged later.

    Raises:
        ConfigError: it is no directory, or has not one config or no checkpoint.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder} is no work directory; with a config, give a checkpoint, too")
    config = find_config(folder)
    patterns = ("best_*.pth", "*.pth", PUBLISHED)
    found = next((paths for one in patterns if (paths := _newest_first(folder, one))), None)
    if not found:
        raise ConfigError(
            f"{folder} has no checkpoint (*.pth) yet: train first, or give one after the directory"
        )
    return config, found[0]


def _newest_first(folder: str | Path, pattern: str) -> list[Path]:
    # a name with a leading dot is that of a file that is being written
    paths = [path for path in Path(folder).glob(pattern) if not path.name.startswith(".")]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
