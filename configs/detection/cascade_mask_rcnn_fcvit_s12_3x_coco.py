"""Cascade Mask R-CNN with an FCViT-S12 backbone on COCO, the 3x schedule with multi-scale training.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 2 images each
Run:       tools/dist_train.sh configs/detection/cascade_mask_rcnn_fcvit_s12_3x_coco.py 8
Published: none; this is ConvNeXt's recipe with its layer-wise learning-rate decay, not tried
           with FCViT's weights
"""

_base_ = [
    "../_base_/models/cascade_mask_rcnn_fcvit_fpn_4conv1fc_giou.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/adamw_3x_layer_decay.py",
    "../_base_/runtime_detection.py",
]

model = dict(backbone=dict(drop_path_rate=0.4))
train_dataloader = dict(batch_size=2)
