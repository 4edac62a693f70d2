# Generated images of one shape each, one folder per class, under data/shapes_classification:
# python -m fcvit_mm.datasets.shapes data/shapes_classification --task classification
dataset_type = "CustomDataset"
data_root = "data/shapes_classification/"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackInputs"),
]
# The images are not resized.
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
# for test.py --tta
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="PackInputs")],
        ],
    ),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type, data_root=data_root, data_prefix="train", pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, data_prefix="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator
