"""Semantic FPN with an FCViT-S12 backbone on ADE20K, 80k iterations with batches of 16.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/segmentation/semantic_fpn_fcvit_s12_80k_ade20k.py 8
Published: none; this is PVT's recipe (arXiv 2102.12122), not tried with FCViT's weights
"""

_base_ = [
    "../_base_/models/semantic_fpn_fcvit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_80k.py",
    "../_base_/runtime_segmentation.py",
]

train_dataloader = dict(batch_size=2)
