"""Mask R-CNN with an FCViT-S12 backbone on COCO, the 1x schedule.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 4 images each
Run:       tools/dist_train.sh configs/detection/mask_rcnn_fcvit_s12_coco.py 8
Published: box AP 42.3 (AP50 64.2, AP75 46.2), mask AP 38.6 (AP50 61.1, AP75 41.3)
           s24: box AP 44.1 (65.4, 48.4), mask AP 39.9 (62.4, 42.7); tiny, s48: not published
"""

_base_ = [
    "../_base_/models/mask_rcnn_fcvit_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/adamw_1x.py",
    "../_base_/runtime_detection.py",
]
