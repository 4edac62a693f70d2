_base_ = "./upernet_fcvit_s12_ade20k.py"

model = dict(
    backbone=dict(
        arch="s48", drop_path_rate=0.3, init_cfg=dict(checkpoint="pretrained/fcvit_s48.pth")
    )
)
