# Random size of a training image: short sides of 480 to 800 pixels; half of the images are resized
# and cropped before that (DETR, arXiv 2005.12872). Limiting the long side to 1333 before the crop,
# too, is from Swin.
resize = dict(
    type="RandomChoiceResize",
    scales=[(1333, side) for side in range(480, 801, 32)],
    keep_ratio=True,
)
multiscale = dict(
    type="RandomChoice",
    transforms=[
        [resize],
        [
            dict(
                type="RandomChoiceResize",
                scales=[(1333, side) for side in (400, 500, 600)],
                keep_ratio=True,
            ),
            dict(
                type="RandomCrop",
                crop_type="absolute_range",
                crop_size=(384, 600),
                allow_negative_crop=True,
            ),
            resize,
        ],
    ],
)
