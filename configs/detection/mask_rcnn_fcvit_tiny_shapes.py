"""Mask R-CNN with FCViT-tiny on generated images, from random weights: what `make demo` runs."""

_base_ = [
    "../_base_/models/mask_rcnn_fcvit_tiny_small.py",
    "../_base_/datasets/shapes_instance.py",
    "../_base_/schedules/adamw_example.py",
    "../_base_/runtime_detection_iter.py",
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)))

# shorter than the other examples: the demonstration takes less than 5 minutes on two CPU cores
max_iters = 330
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=17),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=17, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
