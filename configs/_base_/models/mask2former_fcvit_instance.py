# Mask2Former (arXiv 2112.01527) as an instance segmentor on FCViT-S12, COCO's 80 classes, crops
# of 1024.
_base_ = ["./detector_fcvit.py", "./mask2former_head.py"]

num_classes = 80
classes = dict(num_things_classes=num_classes, num_stuff_classes=0)
model = dict(
    type="Mask2Former",
    data_preprocessor=dict(
        mask_pad_value=0,
        # of training crops
        batch_augments=[
            dict(
                type="BatchFixedSizePad",
                size=(1024, 1024),
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=False,
            )
        ],
    ),
    panoptic_head=dict(
        **_base_.mask2former_head,
        **classes,
        loss_cls=dict(
            type="CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=[1.0] * num_classes + [0.1],
        ),
    ),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", **classes, loss_panoptic=None, init_cfg=None
    ),
    train_cfg=_base_.mask2former_train_cfg,
    test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=100),
)
