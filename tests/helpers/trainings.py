"""Short trainings that draw random numbers everywhere, to be repeated or interrupted."""

from helpers import ROOT

DETECTION = ROOT / "configs/detection/mask_rcnn_fcvit_tiny_shapes.py"
SEGMENTATION = ROOT / "configs/segmentation/semantic_fpn_fcvit_tiny_ema_shapes.py"
ITERATIONS = 8
# A checkpoint after every second iteration, an evaluation after every fourth; paths are dropped and
# images flipped at random.
OPTIONS = [
    f"train_cfg.max_iters={ITERATIONS}",
    "train_cfg.val_interval=4",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "log_processor.window_size=1",
    "train_dataloader.batch_size=2",
    "model.backbone.drop_path_rate=0.2",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
]
NO_WORKERS = ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
SMALL = ["model.data_preprocessor.size=(64,64)"]
METHODS = {
    "detection": (DETECTION, [*OPTIONS, "randomness.seed=3"]),
    "segmentation": (SEGMENTATION, [*OPTIONS, *NO_WORKERS, *SMALL, "randomness.seed=3"]),
}
# Texts of configs: by epochs of two batches, with loader workers, and by iterations without.
BY_EPOCHS = f"""
_base_ = {str(DETECTION)!r}
train_dataloader = dict(batch_size=4, sampler=dict(type="DefaultSampler"))
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=4, val_interval=2)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1), logger=dict(interval=1))
log_processor = dict(by_epoch=True, window_size=1)
model = dict(backbone=dict(drop_path_rate=0.2))
val_dataloader = dict(num_workers=0, persistent_workers=False)
"""
BY_ITERATIONS = f"_base_ = {str(SEGMENTATION)!r}"
