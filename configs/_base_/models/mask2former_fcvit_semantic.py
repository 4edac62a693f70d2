# Mask2Former (arXiv 2112.01527) as a segmentor on FCViT-S12, ADE20K's 150 classes, crops of 512.
_base_ = ["./segmentor_fcvit.py", "./mask2former_head.py"]

num_classes = 150
model = dict(
    decode_head=dict(
        **_base_.mask2former_head,
        num_classes=num_classes,
        align_corners=False,
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            # a query that matches no class counts a tenth
            class_weight=[1.0] * num_classes + [0.1],
        ),
        train_cfg=_base_.mask2former_train_cfg,
    ),
)
