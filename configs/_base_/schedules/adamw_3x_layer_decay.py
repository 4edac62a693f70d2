# The 3x schedule with ConvNeXt's (arXiv 2201.03545) layer-wise decay of the learning rate. The
# constructor also exempts norms, biases and scales from weight decay.
_base_ = "./adamw_3x.py"

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    constructor="FCViTLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.7, num_layers=6),
)
