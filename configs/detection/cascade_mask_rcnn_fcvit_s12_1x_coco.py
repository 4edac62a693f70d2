"""Cascade Mask R-CNN with an FCViT-S12 backbone on COCO, the 1x schedule.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 4 images each
Run:       tools/dist_train.sh configs/detection/cascade_mask_rcnn_fcvit_s12_1x_coco.py 8
Published: none; this is FCViT's recipe for Mask R-CNN with MMDetection's Cascade Mask R-CNN,
           not tried with FCViT's weights
"""

_base_ = [
    "../_base_/models/cascade_mask_rcnn_fcvit_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_1x.py",
    "../_base_/runtime_detection.py",
]
