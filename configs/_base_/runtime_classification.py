_base_ = "./runtime.py"

default_scope = "mmpretrain"

# the last two epochs and the best one
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2, save_best="accuracy/top1"),
    visualization=dict(type="VisualizationHook"),
)
visualizer = dict(
    type="UniversalVisualizer", vis_backends={{_base_.vis_backends}}, name="visualizer"
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
# all training crops have the same size
env_cfg = dict(cudnn_benchmark=True)

tta_model = dict(type="AverageClsScoreTTA")
