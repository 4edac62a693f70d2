"""Seed the random number generators of Python, NumPy and PyTorch."""

import random

import numpy as np
import torch


def seed_all(*numbers: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch by whole numbers from 0 on."""
    python, numpy, pytorch = np.random.SeedSequence(numbers).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(pytorch)
