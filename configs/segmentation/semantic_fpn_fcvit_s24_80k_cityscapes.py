_base_ = "./semantic_fpn_fcvit_s12_80k_cityscapes.py"

model = dict(backbone=dict(arch="s24", init_cfg=dict(checkpoint="pretrained/fcvit_s24.pth")))
