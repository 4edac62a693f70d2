# the test crop is larger, as for s24
_base_ = "./fcvit_s24_in1k.py"

model = dict(backbone=dict(arch="s48", drop_path_rate=0.2))
