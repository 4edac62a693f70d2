_base_ = "./upernet_fcvit_s12_ade20k.py"

model = dict(
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="pretrained/fcvit_tiny.pth")),
    decode_head=dict(in_channels=[32, 64, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
