# 12 epochs of AdamW, a tenth of the learning rate for the backbone, gradients clipped to a norm of
# 0.1: DINO's (arXiv 2203.03605). In float32, as in MMDetection: with half precision mmcv would also
# round the sampling positions of deformable attention.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
