# The 3x schedule with learning rates that decay towards the stem, ConvNeXt's (arXiv 2201.03545)
# choice for detection; the constructor also spares norms, biases and scales the weight decay.
_base_ = "./adamw_3x.py"

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    constructor="FCViTLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.7, num_layers=6),
)
