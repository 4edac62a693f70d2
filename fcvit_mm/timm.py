"""FCViT in timm's registry, for timm and what builds on it, such as segmentation_models.pytorch.

After `import fcvit_mm.timm`, `timm.create_model("fcvit_s12", features_only=True)` returns a model
whose outputs are a list of maps, described by its `feature_info`.
"""

from collections.abc import Callable
from typing import Any

from timm.models import FeatureInfo, register_model
from torch import Tensor

from .models.arch import ARCHS, get_arch
from .models.fcvit import FCViT


class FCViTFeatures(FCViT):
    """FCViT as timm's models with `features_only=True` are: a list of maps, and `feature_info`."""

    def __init__(self, arch: str | dict = "s12", **arguments: Any) -> None:
        super().__init__(arch, **arguments)
        stages = [
            dict(num_chs=dim, reduction=4 * 2**i, module=f"network.{2 * i}")
            for i, dim in enumerate(get_arch(arch).dims)
        ]
        self.feature_info = FeatureInfo(stages, self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Compute the requested stages' features, see `FCViT`."""
        return list(super().forward(x))


def _entrypoint(arch: str) -> Callable[..., FCViTFeatures]:
    def create(
        pretrained: bool = False,
        features_only: bool = False,
        in_chans: int = 3,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict | None = None,
        cache_dir: Any = None,
        **arguments: Any,
    ) -> FCViTFeatures:
        if not features_only or in_chans != 3:
            raise ValueError(
                f"fcvit_{arch} computes features of RGB images: give features_only=True and no "
                "in_chans but 3"
            )
        if not pretrained:
            return FCViTFeatures(arch, **arguments)
        file = (pretrained_cfg_overlay or {}).get("file", f"fcvit_{arch}.pth")
        return FCViTFeatures.from_pretrained(file, arch=arch, **arguments)

    create.__name__ = f"fcvit_{arch}"
    create.__doc__ = f"""Build FCViT-{arch} for timm; its keyword arguments are `FCViT`'s.

    pretrained=True needs pretrained_cfg_overlay=dict(file=PATH).
    """
    return create


for _arch in ARCHS:
    register_model(_entrypoint(_arch))
