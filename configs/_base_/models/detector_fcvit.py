# Common to all detectors: images normalized as for ImageNet, pretrained FCViT-S12.
model = dict(
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="FCViT",
        arch="s12",
        init_cfg=dict(type="Pretrained", checkpoint="pretrained/fcvit_s12.pth"),
    ),
)
