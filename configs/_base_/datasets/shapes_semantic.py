# Generated images of shapes with label maps, under data/shapes:
# python -m fcvit_mm.datasets.shapes data/shapes
_base_ = "./ade20k.py"

dataset_type = "BaseSegDataset"
data_root = "data/shapes/"
# of the images, which are used as they are: nothing is resized
crop_size = (128, 128)
# fcvit_mm.datasets.shapes.SEMANTIC_CLASSES and SEMANTIC_PALETTE: the ground is a class of its own
metainfo = dict(
    classes=("ground", "circle", "square", "triangle", "star"),
    palette=[
        (40, 44, 52),
        (231, 76, 60),
        (52, 152, 219),
        (46, 204, 113),
        (241, 196, 15),
    ],
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [step for step in _base_.test_pipeline if "Resize" not in step["type"]]
# without the sizes
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(type="TestTimeAug", transforms=_base_.tta_pipeline[1]["transforms"][2:]),
]

train_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/train", seg_map_path="label_maps/train"),
        img_suffix=".png",
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/val", seg_map_path="label_maps/val"),
        img_suffix=".png",
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
