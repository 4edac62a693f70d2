"""The site builds strictly and documents every public name; what contributors read is true."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mmengine import registry

import fcvit_mm
from helpers import ROOT

NAMES = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
# what __init__ exports that is not a class or a function
VALUES = {"__version__"}


def look_up(name: str) -> object:
    return pkgutil.resolve_name(name)


def test_every_public_name_is_in_the_reference():
    assert {f"fcvit_mm.{name}" for name in set(fcvit_mm.__all__) - VALUES} <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_everything_that_a_config_can_name_is_in_the_reference():
    """Each class of ours that is in one of MMEngine's registries."""
    for path in (ROOT / "fcvit_mm").rglob("*.py"):
        if "register_module" in path.read_text():
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    registries = [each for each in vars(registry).values() if isinstance(each, registry.Registry)]
    ours = {
        thing
        for each in registries
        for thing in each.module_dict.values()
        if thing.__module__.startswith("fcvit_mm.")
    }
    documented = {look_up(name) for name in NAMES}
    assert {fcvit_mm.FCViT, fcvit_mm.NonFiniteLossHook} <= ours
    assert ours <= documented


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_the_reference_has_a_docstring(name):
    assert inspect.getdoc(look_up(name))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` builds it."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return directory


def test_the_site_builds_strictly_and_has_every_page(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert len(pages) > 10
    assert {path.parent.name for path in site.glob("*/index.html")} >= pages


def test_the_sites_first_page_is_readme(site):
    title = re.search(r"^\*\*(.+?)\*\*", (ROOT / "README.md").read_text(), re.MULTILINE)[1]
    assert f"<strong>{title}</strong>" in (site / "index.html").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_site_documents_the_name(site, name):
    assert f'id="{name}"' in (site / "api/index.html").read_text()


def test_citation_names_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == fcvit_mm.__version__
    assert f"## [{fcvit_mm.__version__}] - 2" in (ROOT / "CHANGELOG.md").read_text()


def test_the_targets_that_contributors_and_workflows_call_exist():
    called = {
        (path.name, target)
        for path in (ROOT / "CONTRIBUTING.md", *(ROOT / ".github/workflows").glob("*.yml"))
        for target in re.findall(r"(?:run: |[`\n])make (?:PYTHON=\S+ )?([a-z-]+)", path.read_text())
    }
    assert len(called) > 10
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {call for call in called if call[1] not in targets} == set()
