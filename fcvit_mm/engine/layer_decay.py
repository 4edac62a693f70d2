"""Layer-wise learning-rate decay for models with an FCViT.

A pretrained backbone's first layers need the smallest changes: every layer learns slower by a
factor than the one behind it, and what is new, necks and heads, at the full rate (BEiT, arXiv
2106.08254).
"""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models.arch import is_int
from ..models.fcvit import FCViT


def _blocks(backbone: FCViT) -> list[int]:
    """The number of blocks of each stage; stages are at the even places of `network`."""
    return [len(list(stage.children())) for stage in backbone.network[::2]]


def layer_ids(backbone: FCViT, num_layers: int) -> dict[str, int]:
    """Say which layer each parameter of an FCViT belongs to.

    The stem is layer 0. The blocks of all stages, in order, are split evenly into layers 1 to
    `num_layers`; the downsampling before a stage belongs to the layer of the stage's first block.
    The output norms, which ImageNet weights lack, are as new as a head: layer `num_layers` + 1.

    Returns:
        The layer of each name of `backbone.named_parameters()`.
    """
    blocks = _blocks(backbone)
    first_blocks = [sum(blocks[:i]) for i in range(len(blocks))]

    def layer(name: str) -> int:
        part, *rest = name.split(".")
        if part == "patch_embed":
            return 0
        if part != "network":
            return num_layers + 1
        index = int(rest[0])
        # at odd places there is the downsampling before the next stage
        block = first_blocks[(index + 1) // 2] + (0 if index % 2 else int(rest[1]))
        return 1 + block * num_layers // sum(blocks)

    return {name: layer(name) for name, _ in backbone.named_parameters()}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class FCViTLayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Learning rates that decay towards the stem; no weight decay on one-dimensional parameters.

    A parameter of layer i (see `layer_ids`) learns at lr * decay_rate ** (num_layers + 1 - i), so
    necks, heads and output norms at lr. Norms, biases, layer scales and the similarity's scale and
    shift are one-dimensional and go without weight decay.

    `paramwise_cfg` takes:
        decay_rate: factor from a layer to the one before it, in (0, 1].
        num_layers: layers that the blocks are split into, 1 to their number, which is the default.
        And whatever MMEngine's DefaultOptimWrapperConstructor takes, such as custom_keys; its
        multipliers come on top.

    Raises:
        ValueError: a value out of range, no base lr, or a model without exactly one FCViT.
    """

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Append the parameter groups of a model to a list, one a layer, with and without decay.

        Each has `params`, `param_names`, `lr`, `weight_decay` where the optimizer has one, and
        `layer`.
        """
        if prefix:  # MMEngine's recursion into the children
            super().add_params(params, module, prefix, is_dcn_module)
            return
        rate, num_layers, ids = self._check(module)
        self.paramwise_cfg: dict[str, Any] = {"flat_decay_mult": 0.0, **self.paramwise_cfg}
        single: list[dict[str, Any]] = []
        super().add_params(single, module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups: dict[tuple, dict[str, Any]] = {}
        for group in single:
            (parameter,) = group.pop("params")
            name = names[id(parameter)]
            group["layer"] = ids.get(name, num_layers + 1)
            scale = rate ** (num_layers + 1 - group["layer"])
            group["lr"] = group.get("lr", self.base_lr) * scale
            key = tuple(sorted(group.items()))
            merged = groups.setdefault(key, {**group, "params": [], "param_names": []})
            merged["params"].append(parameter)
            merged["param_names"].append(name)
        params += sorted(groups.values(), key=lambda group: group["layer"])
        for group in params:
            print_log(
                f"layer {group['layer']}: lr {group['lr']:.3g}, weight decay "
                f"{group.get('weight_decay', self.base_wd)}, {len(group['params'])} tensors",
                logger="current",
                level=logging.INFO,
            )

    def _check(self, model: nn.Module) -> tuple[float, int, dict[str, int]]:
        """The decay rate, the number of layers, and the layer of each of the backbone's names."""
        found = [(name, part) for name, part in model.named_modules() if isinstance(part, FCViT)]
        if len(found) != 1:
            raise ValueError(
                f"layer-wise decay is for models with one FCViT; {type(model).__name__} has "
                f"{len(found)}"
            )
        if self.base_lr is None:
            raise ValueError("layer-wise decay needs optim_wrapper.optimizer.lr; set it")
        rate = self.paramwise_cfg.get("decay_rate")
        if not (isinstance(rate, int | float) and 0 < rate <= 1):
            raise ValueError(f"paramwise_cfg.decay_rate={rate!r} must be a number in (0, 1]")
        ((name, backbone),) = found
        blocks = sum(_blocks(backbone))
        num_layers = self.paramwise_cfg.get("num_layers", blocks)
        if not (is_int(num_layers) and 1 <= num_layers <= blocks):
            raise ValueError(
                f"paramwise_cfg.num_layers={num_layers!r} must be an integer from 1 to {blocks}, "
                "the number of blocks of the backbone"
            )
        ids = layer_ids(backbone, num_layers)
        return rate, num_layers, {f"{name}.{key}" if name else key: i for key, i in ids.items()}
