"""FCViT as a backbone for dense prediction: multi-scale features in MMEngine's registry.

Paper: "A Close Look at Spatial Modeling: From Attention to Convolution", arXiv 2212.12552.
The network computes what the authors' released models compute (Apache-2.0, see NOTICE).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from mmengine.model import BaseModule, initialize
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..checkpoint.reader import read_weights
from .arch import NUM_STAGES, get_arch, is_int
from .layers import Block, Norm, PatchEmbed, init_layer
from .weights import (
    backbone_weights,
    check_exists,
    classifier_weights,
    infer_arguments,
    load_pretrained,
)

AnyFCViT = TypeVar("AnyFCViT", bound="FCViT")


def _check_rate(name: str, value: float) -> float:
    if not (isinstance(value, int | float) and 0 <= value < 1):
        raise ValueError(f"{name}={value!r} must be a probability in [0, 1)")
    return float(value)


def _check_kernel_size(kernel_size: int | Sequence[int]) -> tuple[int, int]:
    pair = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size, kernel_size)
    if len(pair) != 2 or not all(is_int(k) and k > 0 and k % 2 for k in pair):
        raise ValueError(
            f"kernel_size={kernel_size!r} must be an odd positive integer or two of them, one for "
            "each depthwise convolution of a token mixer, such as 11 or (5, 7)"
        )
    return pair[0], pair[1]


def _check_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    given = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    if not given or not all(is_int(i) and -NUM_STAGES <= i < NUM_STAGES for i in given):
        raise ValueError(f"out_indices={out_indices!r} must be stages 0 to 3, or -4 to -1")
    if len({i % NUM_STAGES for i in given}) < len(given):
        raise ValueError(f"out_indices={out_indices!r} names a stage twice")
    return tuple(i % NUM_STAGES for i in given)


class Stage(nn.Sequential):
    """Blocks one after the other; with_cp recomputes each in the backward pass."""

    def __init__(self, *blocks: Block, with_cp: bool) -> None:
        super().__init__(*blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps():
            x = step(x)
        return x

    def steps(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give what to call one after the other."""
        recompute = self.with_cp and self.training and torch.is_grad_enabled()
        for block in self:
            yield partial(checkpoint, block, use_reentrant=False) if recompute else block


@MODELS.register_module()
class FCViT(BaseModule):
    """Fully convolutional vision transformer (arXiv 2212.12552), multi-scale features.

    Attributes:
        out_channels: channels of each output, in the order of out_indices.
        strides: input pixels per position of each output, likewise.
        triton: whether Triton kernels may run, see `use_triton`.

    Args:
        arch: 'tiny', 's12', 's24', 's48' (also 'b12', 'b24', 'b48'), or a dict with the keys
            layers, dims (multiples of 8) and mlp_ratios, four integers each.
        out_indices: stages to return, 0 to 3 (strides 4, 8, 16, 32) or -4 to -1, in this order.
        kernel_size: odd size of the token mixers' depthwise convolutions, one integer or one for
            each of the two (released models: 11; the paper's parameter counts fit (5, 7)).
        global_context: False removes the global context (ablation).
        weighted_context: False hands every position the same context (ablation, S' = 1).
        drop_rate: dropout probability in the channel mixers.
        drop_path_rate: probability of dropping a residual branch in the last block; grows
            linearly over the blocks from 0 in the first.
        layer_scale_init: initial value of the layer scales (released: 1e-6 for dense prediction,
            1e-5 for classification).
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and stages 1 to i. The output
            norms, which ImageNet weights lack, always train.
        norm_eval: True keeps BatchNorm's running statistics fixed while training.
        with_cp: True recomputes each block in the backward pass to save memory.
        triton: True runs Triton kernels on a GPU where they are faster than PyTorch's operators,
            see `fcvit_mm.models.triton_layers.use_triton`.
        init_cfg: `dict(type='Pretrained', checkpoint=PATH)` has `init_weights()` load pretrained
            weights completely or raise, see `fcvit_mm.models.weights.load_pretrained` for its
            further keys. OpenMMLab's runners call `init_weights()`; until then the weights are
            random. `FCViT.from_pretrained` loads at once.

    Raises:
        TypeError: an unknown argument, or an arch that is neither a name nor a dict.
        ValueError: a value that is not allowed; the message names it and what is.
    """

    init_cfg: dict | list[dict] | None
    triton = False

    def __init__(
        self,
        arch: str | dict = "s12",
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        kernel_size: int | Sequence[int] = 11,
        global_context: bool = True,
        weighted_context: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init: float = 1e-6,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        triton: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        layers, dims, mlp_ratios = get_arch(arch)
        self.kernel_size = _check_kernel_size(kernel_size)
        self.out_indices = _check_out_indices(out_indices)
        drop_path_rate = _check_rate("drop_path_rate", drop_path_rate)
        if not (is_int(frozen_stages) and -1 <= frozen_stages <= NUM_STAGES):
            raise ValueError(f"frozen_stages={frozen_stages!r} must be an integer from -1 to 4")
        if not isinstance(layer_scale_init, int | float):
            raise ValueError(f"layer_scale_init={layer_scale_init!r} must be a number")
        super().__init__(init_cfg)

        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.strides = tuple(4 * 2**i for i in self.out_indices)

        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(layers), device="cpu").tolist())
        block = partial(
            Block,
            kernel_size=self.kernel_size,
            global_context=global_context,
            weighted_context=weighted_context,
            drop_rate=_check_rate("drop_rate", drop_rate),
            layer_scale_init=layer_scale_init,
        )
        self.patch_embed = PatchEmbed(3, dims[0], stride=4)
        # Stages and the downsampling between them take turns: 0, 2, 4, 6 and 1, 3, 5.
        self.network = nn.ModuleList()
        for i in range(NUM_STAGES):
            if i > 0:
                self.network.append(PatchEmbed(dims[i - 1], dims[i], stride=2))
            blocks = (
                block(dims[i], mlp_ratios[i], drop_path_rate=next(drop_paths))
                for _ in range(layers[i])
            )
            self.network.append(Stage(*blocks, with_cp=with_cp))
        for i in self.out_indices:
            self.add_module(f"norm{2 * i}", Norm(dims[i]))
        self.apply(init_layer)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)
        if triton:
            from .triton_layers import use_triton  # here, since it imports Triton

            use_triton(self)

    @classmethod
    def from_pretrained(
        cls: type[AnyFCViT],
        checkpoint: str | os.PathLike,
        prefix: str | None = None,
        ema: bool = True,
        **arguments: Any,
    ) -> AnyFCViT:
        """Build an FCViT and load its pretrained weights at once, completely, or raise.

        Args:
            checkpoint: path or URL, see `fcvit_mm.load_pretrained`, as for prefix and ema.
            arguments: of `FCViT`. arch, kernel_size, global_context and weighted_context are the
                file's unless they are given.

        Raises:
            fcvit_mm.CheckpointError: the file does not exist, can't be read or does not fit.
        """
        check_exists(checkpoint, arguments.get("arch"))
        _, weights = read_weights(checkpoint, ema)
        found = infer_arguments(backbone_weights(weights, prefix)) or {}
        backbone = cls(**{**found, **arguments})
        load_pretrained(backbone, checkpoint, prefix, ema)
        return backbone

    def init_weights(self) -> None:
        """Load pretrained weights if `init_cfg` says so; all else is initialized by `__init__`.

        Raises:
            fcvit_mm.utils.errors.CheckpointError: the file does not fill the backbone completely.
        """
        given = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        # pretrained weights last, as in MMEngine
        for cfg in sorted(given, key=lambda cfg: cfg["type"] == "Pretrained"):
            if cfg["type"] == "Pretrained":
                # MMEngine's own loads what happens to fit; ours loads all or raises
                load_pretrained(self, **{key: value for key, value in cfg.items() if key != "type"})
            else:
                initialize(self, cfg)
        self._is_init = True

    @staticmethod
    def _checkpoint_filter(state_dict: dict[str, Tensor], *_: Any) -> None:
        """Translate a released classifier's keys in place, for MMPretrain's ImageClassifier."""
        weights = classifier_weights(state_dict)
        state_dict.clear()
        state_dict.update(weights)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the requested stages' features.

        Args:
            x: normalized images, (B, 3, H, W), any size.

        Returns:
            One (B, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])) per out index.

        Raises:
            ValueError: x has not four dimensions.
        """
        x = self.patch_embed(ops.for_layers(x, triton=self.triton))
        outs = {}
        for index, module in enumerate(self.network):
            # a stage that is called as a whole keeps its input in memory: only a hook needs it
            by_steps = isinstance(module, Stage) and not ops.has_hook(module)
            steps: Iterable[Any] = cast(Stage, module).steps() if by_steps else (module,)
            for step in steps:
                x = step(x)
            if index % 2 == 0 and index // 2 in self.out_indices:
                outs[index // 2] = ops.for_heads(getattr(self, f"norm{index}")(x))
        return tuple(outs[i] for i in self.out_indices)

    def train(self, mode: bool = True) -> "FCViT":
        """Set the mode; frozen parts stay in evaluation mode, with norm_eval all BatchNorms."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, *self.network[: max(2 * self.frozen_stages - 1, 0)]]
