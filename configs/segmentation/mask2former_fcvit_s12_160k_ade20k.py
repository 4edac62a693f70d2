"""Mask2Former with an FCViT-S12 backbone on ADE20K, 160k iterations.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/segmentation/mask2former_fcvit_s12_160k_ade20k.py 8
Published: none; this is Mask2Former's recipe (arXiv 2112.01527) with the image augmentation of
           our other ADE20K configs, not tried with FCViT's weights
"""

_base_ = [
    "../_base_/models/mask2former_fcvit_semantic.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_160k_mask2former.py",
    "../_base_/runtime_segmentation.py",
]

train_dataloader = dict(batch_size=2)
