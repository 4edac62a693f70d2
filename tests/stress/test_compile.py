"""The backbone compiled and exported, and the released networks that are large."""

import pytest
import torch

from fcvit_mm import FCViT
from helpers.released import TOLERANCE, assert_golden, fill, golden_input
from helpers.stress import slow

pytestmark = pytest.mark.official


def small() -> FCViT:
    torch.manual_seed(0)
    arch = dict(layers=(1, 1, 1, 1), dims=(16, 16, 24, 32), mlp_ratios=(2, 2, 2, 2))
    return FCViT(arch, layer_scale_init=0.5).eval()


@pytest.mark.parametrize("backend", ["eager", slow("inductor")])
def test_torch_compile(backend, tmp_path, monkeypatch):
    # not what a killed process may have left in the common one
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, x = small(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend=backend)(x)
    for out, reference in zip(compiled, expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)


def test_torch_export_with_dynamic_batch_and_size():
    model, dim = small(), torch.export.Dim
    shapes = {"x": {0: dim("batch", max=8), 2: dim("h", min=33), 3: dim("w", min=33)}}
    program = torch.export.export(model, (torch.randn(2, 3, 64, 96),), dynamic_shapes=shapes)
    x = torch.randn(3, 3, 75, 101)
    for out, reference in zip(program.module()(x), model(x), strict=True):
        torch.testing.assert_close(out, reference)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("arch", ["tiny", "b12", "b24", "b48"])
def test_every_released_network(arch, dtype):
    model = fill(FCViT(arch)).to(dtype).eval()
    with torch.no_grad():
        outs = model(golden_input(0, 1, 64, 64).to(dtype))
    for i, out in enumerate(outs, 1):
        assert_golden(f"{arch}/64x64/stage{i}", out)
