_base_ = "./semantic_fpn_fcvit_s12_ade20k.py"

model = dict(
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="pretrained/fcvit_tiny.pth")),
    neck=dict(in_channels=[32, 64, 160, 320]),
)
