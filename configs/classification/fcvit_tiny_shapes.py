"""FCViT-tiny as a classifier of generated images, which `make chain` pretrains."""

_base_ = [
    "../_base_/models/classifier_fcvit.py",
    "../_base_/datasets/shapes_classification.py",
    "../_base_/schedules/adamw_example.py",
    "../_base_/runtime_classification.py",
]

model = dict(
    data_preprocessor=dict(num_classes=4),
    # with the published 1e-5, a few hundred iterations from random weights change little
    backbone=dict(arch="tiny", drop_path_rate=0.0, layer_scale_init=0.1),
    head=dict(num_classes=4, in_channels=320),
    train_cfg=None,
)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100),
)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=32)
