"""UperNet with an FCViT-S12 backbone on ADE20K, 160k iterations.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/segmentation/upernet_fcvit_s12_ade20k.py 8
Published: none; this is the recipe of similar backbones, not tried with FCViT's weights
"""

_base_ = [
    "../_base_/models/upernet_fcvit.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/runtime_segmentation.py",
]

# similar backbones use 0.2 to 0.3: 0.2 for tiny and s12, 0.3 for the deeper s24 and s48
model = dict(backbone=dict(drop_path_rate=0.2))
train_dataloader = dict(batch_size=2)
