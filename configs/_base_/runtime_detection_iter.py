# For detectors with a schedule in iterations.
_base_ = "./runtime_detection.py"

default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100),
)
log_processor = dict(by_epoch=False)
