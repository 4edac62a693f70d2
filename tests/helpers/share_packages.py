"""Link installed packages and all that they require into another virtual environment.

python share_packages.py VENV PACKAGE... shows the packages of the running interpreter to VENV's,
so that a second environment need not hold a second copy of torch.
"""

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def closure(names: list[str]) -> dict[str, Distribution]:
    """Distributions by name: the given ones and what they require here, extras left out."""
    found: dict[str, Distribution] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # required for another platform or under a marker
        for text in found[name].requires or []:
            requirement = Requirement(text)
            extras = requirement.extras or {""}
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
                queue += _of_extras(requirement.name, extras)
    return found


def _of_extras(name: str, extras: set[str]) -> list[str]:
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    return [
        requirement.name
        for requirement in map(Requirement, requires)
        if requirement.marker and any(requirement.marker.evaluate({"extra": e}) for e in extras)
    ]


def link(venv: Path, names: list[str]) -> None:
    """Link every top-level file and folder of the distributions into VENV's site-packages."""
    (site_packages,) = venv.glob("lib/python*/site-packages")
    for dist in closure(names).values():
        for file in dist.files or []:
            if file.parts[0] in ("..", "__pycache__"):
                continue
            source = Path(str(dist.locate_file(file.parts[0])))
            target = site_packages / file.parts[0]
            if not target.exists():
                target.symlink_to(source)


if __name__ == "__main__":
    link(Path(sys.argv[1]), sys.argv[2:])
