"""The import paths of 0.1."""

import importlib
import sys

import pytest

import fcvit_mm
from fcvit_mm.utils.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_leads_to_the_module_and_warns(old, monkeypatch):
    monkeypatch.delitem(sys.modules, f"fcvit_mm.{old}", raising=False)
    new = importlib.import_module(f"fcvit_mm.{MOVED[old]}")
    spec = new.__spec__
    with pytest.warns(FutureWarning, match=f"fcvit_mm.{old} is now {new.__name__}"):
        assert importlib.import_module(f"fcvit_mm.{old}") is new
    assert new.__spec__ is spec
    # what the import system set on the package
    monkeypatch.delattr(fcvit_mm, old)
