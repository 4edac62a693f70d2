"""Comparing configs."""

from typing import Any


def differences(a: Any, b: Any, path: str = "") -> set[str]:
    """The dotted paths at which two configs differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            found
            for key in a.keys() | b.keys()
            for found in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        }
    return set() if a == b else {path}
