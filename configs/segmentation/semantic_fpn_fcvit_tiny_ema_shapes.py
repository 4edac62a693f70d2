"""EMA: what is evaluated, and what a checkpoint's `state_dict` holds, is the moving average of the
weights. The same custom_hooks do it in any config; a long schedule wants a smaller momentum, such
as MMEngine's 0.0002."""

_base_ = "./semantic_fpn_fcvit_tiny_shapes.py"

# BatchNorm's statistics are averaged with the weights. Before SyncBuffersHook, which then gives all
# GPUs the same averages.
custom_hooks = [
    dict(type="EMAHook", momentum=0.01, update_buffers=True),
    *_base_.custom_hooks,
]
