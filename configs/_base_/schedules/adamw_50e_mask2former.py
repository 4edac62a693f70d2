# 50 epochs of COCO as iterations of 16 images.
_base_ = "./adamw_160k_mask2former.py"

max_iters = 368750
param_scheduler = [
    dict(
        type="MultiStepLR",
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[327778, 355092],
        gamma=0.1,
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=5000)
