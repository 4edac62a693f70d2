_base_ = "./runtime.py"

default_scope = "mmdet"
# mmdet's own model for test-time augmentation does not support masks
custom_imports = dict(imports=["fcvit_mm", "fcvit_mm.models.tta"])

# the last two epochs and the best one: all twelve of Mask R-CNN would take 5 to 10 GB
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2, save_best="coco/bbox_mAP"),
    visualization=dict(type="DetVisualizationHook"),
)
visualizer = dict(
    type="DetLocalVisualizer", vis_backends={{_base_.vis_backends}}, name="visualizer"
)
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)

tta_model = dict(
    type="InstanceSegTTAModel",
    tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
)
