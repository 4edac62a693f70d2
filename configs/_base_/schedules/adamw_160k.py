# 160k iterations of AdamW in half precision, linear decay after a warm-up: introduced
# by Swin (arXiv 2103.14030) for UperNet and kept by its successors.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale="dynamic",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # No weight decay on norms. The standardization of the similarity counts as one, with scale and
    # shift in rescale_weight and rescale_bias, although it is no norm module.
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"rescale_": dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=4000)

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
