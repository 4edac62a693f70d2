_base_ = "./fcvit_s12_in1k.py"

model = dict(backbone=dict(arch="tiny"), head=dict(in_channels=320))
