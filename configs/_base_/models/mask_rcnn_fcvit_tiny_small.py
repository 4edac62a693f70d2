# Mask R-CNN on FCViT-tiny for images of some 128 pixels, trained from random weights on a CPU:
# fewer channels and proposals, and anchors for objects of 16 to 64 pixels.
_base_ = "./mask_rcnn_fcvit_fpn.py"

channels = 64
norm_cfg = dict(type="BN")
model = dict(
    # with the published 1e-6, a few hundred iterations from random weights change little
    backbone=dict(arch="tiny", layer_scale_init=0.1, init_cfg=None),
    neck=dict(in_channels=[32, 64, 160, 320], out_channels=channels, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=channels, finest_scale=28, roi_layer=dict(sampling_ratio=1)
        ),
        bbox_head=dict(in_channels=channels, fc_out_channels=256),
        mask_roi_extractor=dict(
            out_channels=channels, finest_scale=28, roi_layer=dict(sampling_ratio=1)
        ),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, norm_cfg=norm_cfg),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=400, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.125)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=400, max_per_img=100), rcnn=dict(max_per_img=50)),
)
