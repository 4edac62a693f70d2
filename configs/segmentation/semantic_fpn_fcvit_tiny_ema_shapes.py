"""EMA: the exponential moving average of the weights is evaluated and saved as `state_dict`.

The same custom_hooks work in any config; use a smaller momentum for a long schedule, such as
MMEngine's 0.0002.
"""

_base_ = "./semantic_fpn_fcvit_tiny_shapes.py"

# BatchNorm's statistics are averaged too. The hook comes before SyncBuffersHook, which then gives
# all GPUs the same averages.
custom_hooks = [
    dict(type="EMAHook", momentum=0.01, update_buffers=True),
    *_base_.custom_hooks,
]
