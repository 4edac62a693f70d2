"""Mask R-CNN with FCViT-tiny on generated images, from random weights; `make demo` trains it."""

_base_ = [
    "../_base_/models/mask_rcnn_fcvit_tiny_small.py",
    "../_base_/datasets/shapes_instance.py",
    "../_base_/schedules/adamw_example.py",
    "../_base_/runtime_detection_iter.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)))
