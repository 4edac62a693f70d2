_base_ = "./cascade_mask_rcnn_fcvit_s12_3x_coco.py"

model = dict(backbone=dict(arch="s24", init_cfg=dict(checkpoint="pretrained/fcvit_s24.pth")))
