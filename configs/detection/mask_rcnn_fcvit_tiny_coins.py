"""Mask R-CNN with FCViT-tiny on a photograph of coins; `make demo DATA=coins` trains it."""

_base_ = [
    "../_base_/models/mask_rcnn_fcvit_tiny_small.py",
    "../_base_/datasets/coins_instance.py",
    "../_base_/schedules/adamw_example.py",
    "../_base_/runtime_detection_iter.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=1), mask_head=dict(num_classes=1)))
