"""Semantic FPN with an FCViT-S12 backbone on Cityscapes, 80k iterations with batches of 16.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/segmentation/semantic_fpn_fcvit_s12_80k_cityscapes.py 8
Published: none; crops and schedule are MMSegmentation's for Cityscapes, the optimizer is PVT's for
           Semantic FPN (arXiv 2102.12122). Not tried with FCViT's weights
"""

_base_ = [
    "../_base_/models/semantic_fpn_fcvit.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/adamw_80k.py",
    "../_base_/runtime_segmentation.py",
]

model = dict(data_preprocessor=dict(size=(512, 1024)), decode_head=dict(num_classes=19))
train_dataloader = dict(batch_size=2)
