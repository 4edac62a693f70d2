_base_ = "./upernet_fcvit_s12_80k_cityscapes.py"

model = dict(
    backbone=dict(
        arch="s24", drop_path_rate=0.3, init_cfg=dict(checkpoint="pretrained/fcvit_s24.pth")
    )
)
