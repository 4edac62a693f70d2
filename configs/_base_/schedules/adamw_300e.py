# 300 epochs of AdamW in half precision, cosine decay after a warm-up of 5: as FCViT's ImageNet
# weights were trained, without the last 10 epochs of its script at the lowest learning rate.
max_epochs = 300
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    # timm, which trained it, has no weight decay on vectors: norms, biases, scalars per head
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=5, end=max_epochs),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)

# 8 GPUs with 128 images each
auto_scale_lr = dict(enable=False, base_batch_size=1024)
