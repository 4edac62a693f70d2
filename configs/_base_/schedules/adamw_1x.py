# 12 epochs of AdamW in half precision: the "1x" schedule of detection, used for FCViT's results.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)

# 8 GPUs with 4 images each. Backbones of this size usually have 2 per GPU at this learning
# rate. FCViT's released config has 4, and we reproduce its results.
auto_scale_lr = dict(enable=False, base_batch_size=32)
