# COCO 2017, boxes only: masks are neither loaded nor evaluated.
_base_ = "./coco_instance.py"

load = dict(type="LoadAnnotations", with_bbox=True)
train_pipeline, test_pipeline = (
    [load if step["type"] == "LoadAnnotations" else step for step in pipeline]
    for pipeline in (_base_.train_pipeline, _base_.test_pipeline)
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=["bbox"])
test_evaluator = val_evaluator
