_base_ = "./fcvit_s12_in1k.py"

model = dict(backbone=dict(arch="s24"))
# crops 0.95 of the short side: floor(224 / 0.95)
test_pipeline = _base_.test_pipeline
tta_pipeline = _base_.tta_pipeline
test_pipeline[1].scale = tta_pipeline[1].scale = 235
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
