_base_ = "./mask_rcnn_fcvit_s12_coco.py"

model = dict(
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="pretrained/fcvit_tiny.pth")),
    neck=dict(in_channels=[32, 64, 160, 320]),
)
