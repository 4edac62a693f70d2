# A classifier for a dataset of one's own, one folder per class, as docs/custom_data.md says. The
# config that inherits this one, as `fcvit init` writes it, adds the size of the images, classes and
# schedule.
_base_ = "../../classification/fcvit_s12_in1k.py"

model = dict(
    backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="pretrained/fcvit_s12.pth")),
    # mixed images take hundreds of epochs
    train_cfg=None,
)

# Steps of the pipelines but for resizing and cropping.
read, pack = _base_.test_pipeline[0], _base_.test_pipeline[-1]
augment = [dict(type="RandomFlip", prob=0.5), pack]
flips = _base_.tta_pipeline[-1]["transforms"]

train_dataloader = dict(dataset=dict(_delete_=True, type="CustomDataset", data_prefix="train"))
val_dataloader = dict(dataset=dict(_delete_=True, type="CustomDataset", data_prefix="val"))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

# a few hundred steps at a high learning rate go astray without it
optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
