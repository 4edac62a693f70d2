"""Read checkpoints safely, and have MMEngine do the same."""

from ..utils.errors import CheckpointError
from .mmengine_backends import register_atomic_local_backend, register_safe_loaders
from .reader import fetch, find_weights, is_url, read_checkpoint, read_weights, sha256

__all__ = [
    "CheckpointError",
    "fetch",
    "find_weights",
    "is_url",
    "read_checkpoint",
    "read_weights",
    "register_atomic_local_backend",
    "register_safe_loaders",
    "sha256",
]
