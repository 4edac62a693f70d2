"""How often tests draw: a few times in every run, many times in a slow one."""

import os
from functools import partial

import pytest

# One of a test's parameters, for slow tests alone.
slow = partial(pytest.param, marks=pytest.mark.slow)


def some(variable: str, few: int, many: int) -> pytest.MarkDecorator:
    """Parametrize a test by `number`: few, and many if slow; or only what a variable says."""
    if variable in os.environ:
        return pytest.mark.parametrize("number", [int(os.environ[variable])])
    return pytest.mark.parametrize("number", [few, slow(many)])
