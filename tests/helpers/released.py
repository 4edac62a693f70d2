"""The released network's form: golden outputs, and files such as its authors wrote."""

import json
import zlib
from argparse import Namespace

import numpy as np
import torch

from helpers import DATA

GOLDEN = np.load(DATA / "fcvit_golden.npz")
KEYS = json.loads((DATA / "imagenet_state_dict_keys.json").read_text())
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def golden_tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that the golden data were made with for the parameter or buffer of this name."""
    n = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_var":
        value = 0.5 + abs(n)
    elif last == "running_mean":
        value = 0.1 * n
    elif "layer_scale" in name:
        value = 0.5 + 0.1 * n
    elif last == "rescale_weight":
        value = 1 + 0.2 * n
    elif last == "rescale_bias" or last == "bias":
        value = 0.1 * n
    elif len(shape) == 1:
        value = 1 + 0.1 * n
    else:
        value = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_input(seed: int, batch: int, height: int, width: int) -> torch.Tensor:
    values = np.random.RandomState(seed).standard_normal((batch, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def assert_golden(name: str, actual: torch.Tensor) -> None:
    expected = torch.from_numpy(GOLDEN[name]).double()
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[actual.dtype], f"{name}: {error:.1e}"


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Fill a module whose keys are the released ones with the golden values, in place."""
    state = module.state_dict()
    module.load_state_dict({key: golden_tensor(key, tuple(v.shape)) for key, v in state.items()})
    return module


def imagenet_state_dict(arch: str) -> dict[str, torch.Tensor]:
    """A state dict of the released form (tiny, b12, b24 or b48), with the golden values."""
    return {key: golden_tensor(key, tuple(shape)) for key, shape in KEYS[arch].items()}


def timm_checkpoint(arch: str) -> dict:
    """What timm's training script writes; the averaged weights differ from the plain ones."""
    state_dict = imagenet_state_dict(arch)
    return {
        "epoch": 299,
        "arch": f"fcvit_{arch}",
        "state_dict": state_dict,
        "state_dict_ema": {k: v + 1 if v.is_floating_point() else v for k, v in state_dict.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "params": [0, 1]}]},
        "version": 2,
        "args": Namespace(model=f"fcvit_{arch}", lr=1e-3, mean=None, aa="rand-m9-mstd0.5-inc1"),
        "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "metric": 80.9,
    }
