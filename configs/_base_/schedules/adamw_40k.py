# 40k iterations of AdamW in half precision, polynomial decay without warm-up.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=4000)

# 8 GPUs with 4 images each
auto_scale_lr = dict(enable=False, base_batch_size=32)
