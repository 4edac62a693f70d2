"""Mask2Former with an FCViT-S12 backbone on COCO, instance segmentation, 50 epochs.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/detection/mask2former_fcvit_s12_50e_coco.py 8
Published: none; this is MMDetection's recipe for Mask2Former with ResNet-50, not tried with FCViT's
           weights
"""

_base_ = [
    "../_base_/models/mask2former_fcvit_instance.py",
    "../_base_/datasets/coco_instance_lsj.py",
    "../_base_/schedules/adamw_50e_mask2former.py",
    "../_base_/runtime_detection_iter.py",
]

train_dataloader = dict(batch_size=2)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=5000))
