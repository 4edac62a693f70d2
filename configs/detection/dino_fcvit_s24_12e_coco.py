_base_ = "./dino_fcvit_s12_12e_coco.py"

model = dict(backbone=dict(arch="s24", init_cfg=dict(checkpoint="pretrained/fcvit_s24.pth")))
