"""Trace a model: which part is at work, and what its activations keep in memory."""

import gc
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import finalize

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.fcvit import FCViT
from .workload import run_loss

Parts = dict[str, list[nn.Module]]
# What belongs to no part: resizing, losses.
REST = "rest"


def parts_of(model: nn.Module) -> Parts:
    """Return the modules of each part, in the order of the model: stem, stages, neck, heads.

    FCViT's stages begin with the downsampling before them and end with their output norms. Other
    backbones, and the RoI heads of detectors, fall into their children.
    """
    parts: Parts = {}
    if isinstance(model, FCViT):
        parts["stem"] = [model.patch_embed]
        for i in range(0, len(model.network), 2):
            norm = getattr(model, f"norm{i}", nn.Identity())
            parts[f"stage {i // 2 + 1}"] = [*model.network[max(i - 1, 0) : i + 1], norm]
        return parts
    for name, child in model.named_children():
        inner = parts_of(child) if name in ("backbone", "roi_head") else {}
        parts |= {f"{name}: {key}": modules for key, modules in inner.items()} or {name: [child]}
    return parts


class Watch(TorchDispatchMode):
    """Follow which part of a model is at work.

    Attributes:
        part: the part whose module is being called, the innermost one.
        shapes: of the tensors that a part gave: its module that was last called from outside of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.parts, self.part = parts_of(model), REST
        self.shapes: dict[str, list[tuple[int, ...]]] = {}
        self.undo = ExitStack()

    def __enter__(self) -> Any:
        for name, modules in self.parts.items():
            for module in {inner for outer in modules for inner in outer.modules()}:
                # `forward`, as the segmentors of MMSegmentation call it directly, past any hook
                module.forward = self._followed(name, module.forward)
                self.undo.callback(vars(module).pop, "forward", None)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.undo.close()

    def _followed(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the forward of a part's module."""

        def follow(*args: Any, **kwargs: Any) -> Any:
            outer, self.part = self.part, name
            try:
                output = forward(*args, **kwargs)
            finally:
                self.part = outer
            if outer != name:
                # the tensors themselves would stay in memory
                tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
                self.shapes[name] = [tuple(x.shape) for x in tensors]
            return output

        return follow


class Memory(Watch):
    """Count the bytes of the tensors that operators make, as long as they exist.

    Not those of parameters, buffers and `inputs`, nor workspace inside an operator. Views share
    their tensor's bytes.

    Attributes:
        peaks: most bytes that existed at once, all parts', by the part then at work.
    """

    def __init__(self, model: nn.Module, *inputs: Tensor) -> None:
        super().__init__(model)
        apart = (*model.parameters(), *model.buffers(), *inputs)
        self.apart = {id(s): s for s in (tensor.untyped_storage() for tensor in apart)}
        # by storage, the part that made it and its bytes
        self.alive: dict[int, tuple[str, int]] = {}
        self.now = 0
        self.peaks: Counter[str] = Counter()

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=0)

    def kept(self) -> Counter[str]:
        """Return the bytes that exist now, by the part that made them."""
        gc.collect()
        found: Counter[str] = Counter()
        for part, size in self.alive.values():
            found[part] += size
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return output

    def _see(self, storage: Any) -> None:
        key = id(storage)
        if key not in self.apart and key not in self.alive:
            self.alive[key] = self.part, storage.nbytes()
            self.now += storage.nbytes()
            finalize(storage, self._forget, key)
        self.peaks[self.part] = max(self.peaks[self.part], self.now)

    def _forget(self, key: int) -> None:
        self.now -= self.alive.pop(key)[1]


def keep_statistics(model: nn.Module) -> None:
    """Put BatchNorm into evaluation mode, which in training does not take a single position."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def kept_for_backward(model: nn.Module, inputs: Tensor, samples: list[Any]) -> Counter[str]:
    """Return the bytes between the forward and the backward pass of a training step, by part.

    The model is in evaluation mode before and after.
    """
    model.train()
    keep_statistics(model)
    try:
        with Memory(model, inputs) as memory:
            # holds what is kept
            loss = run_loss(model, inputs, samples)
        kept = memory.kept()
        del loss
    finally:
        model.eval()
    return kept
