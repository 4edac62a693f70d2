# For detectors without masks: mmdet's own model merges their augmented predictions.
_base_ = "./runtime_detection.py"

tta_model = dict(type="DetTTAModel")
