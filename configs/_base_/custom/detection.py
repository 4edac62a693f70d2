# Mask R-CNN for a dataset of one's own, laid out as docs/custom_data.md says. The config that
# inherits this one, as `fcvit init` writes it, adds the size of the images, classes and schedule.
_base_ = "../../detection/mask_rcnn_fcvit_s12_coco.py"

# Steps of the pipelines but for the resizing; `boxes` in the place of `masks` where there are none.
read, pack = _base_.test_pipeline[0], _base_.test_pipeline[-1]
masks = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
boxes = dict(type="LoadAnnotations", with_bbox=True)
augment = _base_.train_pipeline[-2:]
flips = _base_.tta_pipeline[1]["transforms"][1:]

train_dataloader = dict(
    dataset=dict(ann_file="annotations/train.json", data_prefix=dict(img="images/train/"))
)
val_dataloader = dict(
    dataset=dict(ann_file="annotations/val.json", data_prefix=dict(img="images/val/"))
)
test_dataloader = val_dataloader

# a few hundred steps at a high learning rate go astray without it
optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
