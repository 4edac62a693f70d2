# Generated images of shapes with boxes and masks, under data/shapes:
# python -m fcvit_mm.datasets.shapes data/shapes
_base_ = "./coco_instance.py"

data_root = "data/shapes/"
# fcvit_mm.datasets.shapes.CLASSES and PALETTE
metainfo = dict(
    classes=("circle", "square", "triangle", "star"),
    palette=[(231, 76, 60), (52, 152, 219), (46, 204, 113), (241, 196, 15)],
)

# The images are used as they are: nothing is resized.
train_pipeline = [step for step in _base_.train_pipeline if step["type"] != "Resize"]
test_pipeline = [
    dict(type="Resize", scale_factor=1.0) if step["type"] == "Resize" else step
    for step in _base_.test_pipeline
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=1.0)],
            *_base_.tta_pipeline[1]["transforms"][1:],
        ],
    ),
]

train_dataloader = dict(
    # COCO's samples batches by epoch and by the shape of images
    _delete_=True,
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=_base_.dataset_type,
        data_root=data_root,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="images/train/"),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator
