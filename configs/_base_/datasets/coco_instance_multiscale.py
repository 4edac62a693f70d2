_base_ = ["./coco_instance.py", "./multiscale.py"]

train_pipeline = [
    _base_.multiscale if step["type"] == "Resize" else step for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
