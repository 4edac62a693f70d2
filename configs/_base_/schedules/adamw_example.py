# A few minutes of AdamW from random weights, for images of 128 pixels.
max_iters = 500
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=25),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=25, end=max_iters),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=100)

auto_scale_lr = dict(enable=False, base_batch_size=4)
