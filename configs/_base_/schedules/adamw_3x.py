# 36 epochs of AdamW in half precision: the "3x" schedule of detection, introduced by Swin (arXiv
# 2103.14030) for backbones of this size.
_base_ = "./adamw_1x.py"

optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    # No weight decay on vectors: norms, biases, layer scales, the similarity's scalars.
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
train_cfg = dict(max_epochs=36)

# 8 GPUs with 2 images each
auto_scale_lr = dict(base_batch_size=16)
