# COCO 2017 with large-scale jittering (arXiv 2012.07177): images are resized by
# 0.1 to 2 and cropped.
_base_ = "./coco_instance.py"

size = (1024, 1024)
jitter = [
    dict(type="RandomResize", scale=size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_size=size,
        crop_type="absolute",
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
]
train_pipeline = [
    new
    for step in _base_.train_pipeline
    for new in (jitter if step["type"] == "Resize" else [step])
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
