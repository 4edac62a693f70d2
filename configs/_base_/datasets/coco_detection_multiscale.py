# Multi-scale training of detection transformers: images without objects are used too.
_base_ = ["./coco_detection.py", "./multiscale.py"]

train_pipeline = [
    _base_.multiscale if step["type"] == "Resize" else step for step in _base_.train_pipeline
]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline)
)
