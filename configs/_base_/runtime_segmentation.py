_base_ = "./runtime.py"

default_scope = "mmseg"

# the last two checkpoints and the best one
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(
        type="CheckpointHook", by_epoch=False, interval=4000, max_keep_ckpts=2, save_best="mIoU"
    ),
    visualization=dict(type="SegVisualizationHook"),
)
visualizer = dict(
    type="SegLocalVisualizer", vis_backends={{_base_.vis_backends}}, name="visualizer"
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=False)
# all training crops have the same size
env_cfg = dict(cudnn_benchmark=True)

tta_model = dict(type="SegTTAModel")
