"""DINO with an FCViT-S12 backbone on COCO, four scales, 12 epochs.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/detection/dino_fcvit_s12_12e_coco.py 8
Published: none; this is MMDetection's recipe for DINO with ResNet-50, not tried with
           FCViT's weights
"""

_base_ = [
    "../_base_/models/dino_fcvit.py",
    "../_base_/datasets/coco_detection_multiscale.py",
    "../_base_/schedules/adamw_12e_dino.py",
    "../_base_/runtime_detection_boxes.py",
]

train_dataloader = dict(batch_size=2)
