# Settings of all configs, for every task.
custom_imports = dict(imports=["fcvit_mm"])

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # max_skips: how many non-finite steps may be skipped before training stops
    nonfinite=dict(type="NonFiniteLossHook", max_skips=0),
)
# Each GPU trains FCViT's BatchNorms on its own images. Averaging their running statistics before an
# evaluation makes all GPUs evaluate the same model.
custom_hooks = [dict(type="SyncBuffersHook")]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

vis_backends = [dict(type="LocalVisBackend")]
log_level = "INFO"
load_from = None
resume = False
