"""Mask R-CNN with an FCViT-S12 backbone on COCO, the 3x schedule with multi-scale training.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/detection/mask_rcnn_fcvit_s12_3x_coco.py 8
Published: none; this is the recipe of similar backbones (Swin and its successors), not tried with
           FCViT's weights
"""

_base_ = [
    "../_base_/models/mask_rcnn_fcvit_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/adamw_3x.py",
    "../_base_/runtime_detection.py",
]

model = dict(backbone=dict(drop_path_rate=0.2))
train_dataloader = dict(batch_size=2)
