"""Layer-wise learning-rate decay for models with an FCViT (BEiT, arXiv 2106.08254)."""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..models.arch import is_int
from ..models.fcvit import FCViT


def layer_ids(backbone: FCViT, num_layers: int | None = None) -> dict[str, int]:
    """Return the layer of each name of `backbone.named_parameters()`.

    The stem is layer 0. The blocks of all stages, in order, are split evenly into layers 1 to
    `num_layers`, by default one each; the downsampling before a stage belongs to the layer of the
    stage's first block. The output norms, which ImageNet weights lack, are as new as a head: layer
    `num_layers` + 1.

    Raises:
        ValueError: `num_layers` is not an integer from 1 to the number of blocks.
    """
    # stages are at the even places of `network`, downsampling before the next stage at the odd
    blocks = [len(list(stage.children())) for stage in backbone.network[::2]]
    total = sum(blocks)
    count = total if num_layers is None else num_layers
    if not (is_int(count) and 1 <= count <= total):
        raise ValueError(
            f"paramwise_cfg.num_layers={count!r} must be an integer from 1 to {total}, the number "
            "of blocks of the backbone"
        )

    def layer(name: str) -> int:
        part, *rest = name.split(".")
        if part != "network":
            return 0 if part == "patch_embed" else count + 1
        index = int(rest[0])
        block = sum(blocks[: (index + 1) // 2]) + (0 if index % 2 else int(rest[1]))
        return 1 + block * count // total

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
        """Append the parameter groups of a model to a list, per layer with and without decay.

        Each has `params`, `param_names`, `lr`, `weight_decay` where the optimizer has one, and
        `layer`.
        """
        if prefix:  # MMEngine's recursion into the children
            super().add_params(params, module, prefix, is_dcn_module)
            return
        found = [part for part in module.modules() if isinstance(part, FCViT)]
        if len(found) != 1:
            raise ValueError(
                f"layer-wise decay is for models with one FCViT; {type(module).__name__} has "
                f"{len(found)}"
            )
        if self.base_lr is None:
            raise ValueError("layer-wise decay needs optim_wrapper.optimizer.lr; set it")
        rate = self.paramwise_cfg.get("decay_rate")
        if not (isinstance(rate, int | float) and 0 < rate <= 1):
            raise ValueError(f"paramwise_cfg.decay_rate={rate!r} must be a number in (0, 1]")
        ids = layer_ids(found[0], self.paramwise_cfg.get("num_layers"))
        layers = {id(p): ids[name] for name, p in found[0].named_parameters()}
        # the output norms', which are as new as a head
        head = max(ids.values())
        self.paramwise_cfg: dict[str, Any] = {"flat_decay_mult": 0.0, **self.paramwise_cfg}
        single: list[dict[str, Any]] = []
        super().add_params(single, module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups: dict[tuple, dict[str, Any]] = {}
        for group in single:
            (parameter,) = group.pop("params")
            group["layer"] = layers.get(id(parameter), head)
            group["lr"] = group.get("lr", self.base_lr) * rate ** (head - group["layer"])
            key = tuple(sorted(group.items()))
            merged = groups.setdefault(key, {**group, "params": [], "param_names": []})
            merged["params"].append(parameter)
            merged["param_names"].append(names[id(parameter)])
        params += sorted(groups.values(), key=lambda group: group["layer"])
        for group in params:
            print_log(
                f"layer {group['layer']}: lr {group['lr']:.3g}, weight decay "
                f"{group.get('weight_decay', self.base_wd)}, {len(group['params'])} tensors",
                logger="current",
                level=logging.INFO,
            )
