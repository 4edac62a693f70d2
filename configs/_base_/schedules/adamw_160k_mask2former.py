# 160k iterations of AdamW in float32, polynomial decay without warm-up, gradients clipped to a norm
# of 0.01: Mask2Former's (arXiv 2112.01527), as in MMSegmentation.
# MMEngine applies only the longest key that is part of a parameter's name. So the backbone's norms,
# layer scales, and scale and shift of the similarity need keys for having no weight decay.
no_decay = [
    "backbone.norm",
    *[f".{norm}.{kind}" for norm in ("norm", "norm1", "norm2") for kind in ("weight", "bias")],
    *["layer_scale_", "rescale_weight", "rescale_bias"],
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            **{key: dict(lr_mult=0.1, decay_mult=0.0) for key in no_decay},
            **{key: dict(decay_mult=0.0) for key in ("query_embed", "query_feat", "level_embed")},
        ),
    ),
)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=4000)

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
