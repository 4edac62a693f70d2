# Coins in tiles of a photograph, under data/coins: python -m fcvit_mm.datasets.coins data/coins
_base_ = "./shapes_instance.py"

data_root = "data/coins/"
# fcvit_mm.datasets.coins.CLASSES and PALETTE
metainfo = dict(classes=("coin",), palette=[(255, 196, 0)])

# Strong augmentation for only 45 tiles: coins can be flipped in any direction.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_test.json",
        data_prefix=dict(img="images/test/"),
        metainfo=metainfo,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_test.json")
test_evaluator = val_evaluator
