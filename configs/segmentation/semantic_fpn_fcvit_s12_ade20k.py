"""Semantic FPN with an FCViT-S12 backbone on ADE20K, 40k iterations.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 4 images each
Run:       tools/dist_train.sh configs/segmentation/semantic_fpn_fcvit_s12_ade20k.py 8
Published: mIoU 43.3; s24: 45.5; tiny, s48: not published
"""

_base_ = [
    "../_base_/models/semantic_fpn_fcvit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_40k.py",
    "../_base_/runtime_segmentation.py",
]
