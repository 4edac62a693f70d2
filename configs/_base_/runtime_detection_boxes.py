# For detectors without masks, whose views mmdet's own model merges.
_base_ = "./runtime_detection.py"

tta_model = dict(type="DetTTAModel")
