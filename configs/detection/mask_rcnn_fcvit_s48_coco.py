_base_ = "./mask_rcnn_fcvit_s12_coco.py"

model = dict(backbone=dict(arch="s48", init_cfg=dict(checkpoint="pretrained/fcvit_s48.pth")))
