# Semantic FPN for a dataset of one's own, laid out as docs/custom_data.md says. The config that
# inherits this one, as `fcvit init` writes it, adds the size of the images, classes and schedule.
_base_ = "../../segmentation/semantic_fpn_fcvit_s12_ade20k.py"

# Steps of the pipelines but for resizing and cropping.
read, maps = _base_.train_pipeline[:2]
augment = _base_.train_pipeline[-3:]
pack = _base_.test_pipeline[2:]
flips = _base_.tta_pipeline[1]["transforms"][1:]

# by epochs, as the other tasks
train_dataloader = dict(
    sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="BaseSegDataset",
        data_prefix=dict(img_path="images/train", seg_map_path="label_maps/train"),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="BaseSegDataset",
        data_prefix=dict(img_path="images/val", seg_map_path="label_maps/val"),
    )
)
test_dataloader = val_dataloader
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop")
default_hooks = dict(logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True))
log_processor = dict(by_epoch=True)

# a few hundred steps at a high learning rate go astray without it
optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
