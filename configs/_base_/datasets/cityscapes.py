# Cityscapes (arXiv 1604.01685), fine annotations of 19 classes, under data/cityscapes; loaded as
# ADE20K is. A model also sets model.data_preprocessor.size to the crops' and num_classes to 19.
_base_ = "./ade20k.py"

dataset_type = "CityscapesDataset"
data_root = "data/cityscapes"
crop_size = (512, 1024)

# Images are twice as high as ADE20K's.
train_pipeline = [
    dict(step, scale=(2048, 1024))
    if step["type"] == "RandomResize"
    else dict(step, crop_size=crop_size)
    if step["type"] == "RandomCrop"
    else step
    for step in _base_.train_pipeline
]
test_pipeline = [
    dict(step, scale=(2048, 1024)) if step["type"] == "Resize" else step
    for step in _base_.test_pipeline
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(step, scale=(step["scale"][0], 2 * step["scale"][1]))
                for step in _base_.tta_pipeline[1]["transforms"][0]
            ],
            *_base_.tta_pipeline[1]["transforms"][1:],
        ],
    ),
]

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/train", seg_map_path="gtFine/train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
