"""UperNet with an FCViT-S12 backbone on Cityscapes, 80k iterations.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/segmentation/upernet_fcvit_s12_80k_cityscapes.py 8
Published: none; crops and schedule are MMSegmentation's for Cityscapes, the optimizer is that of
           our UperNet on ADE20K. Not tried with FCViT's weights
"""

_base_ = [
    "../_base_/models/upernet_fcvit.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/runtime_segmentation.py",
]

model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    # as on ADE20K
    backbone=dict(drop_path_rate=0.2),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
)
train_dataloader = dict(batch_size=2)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=80000),
]
train_cfg = dict(max_iters=80000)
