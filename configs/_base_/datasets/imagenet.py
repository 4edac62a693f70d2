# ImageNet-1k (arXiv 1409.0575) under data/imagenet, one folder per class in train/ and val/.
dataset_type = "ImageNet"
data_root = "data/imagenet/"
size = 224
# in the order in which images are read, BGR
mean = [103.53, 116.28, 123.675]
std = [57.375, 57.12, 58.395]

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=size, backend="pillow", interpolation="bicubic"),
    dict(type="RandomFlip", prob=0.5),
    # timm's rand-m9-mstd0.5-inc1
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[104, 116, 124], interpolation="bicubic"),
    ),
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        max_area_ratio=1 / 3,
        fill_color=mean,
        fill_std=std,
    ),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # crops 0.9 of the short side: floor(224 / 0.9)
    dict(type="ResizeEdge", scale=248, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=size),
    dict(type="PackInputs"),
]
# for test.py --tta
tta_pipeline = [
    *test_pipeline[:-1],
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="PackInputs")],
        ],
    ),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split="train",
        data_prefix="train",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split="val",
        data_prefix="val",
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
