"""FCViT-S12 on ImageNet-1k, 224x224, 300 epochs.

Paper:     A Close Look at Spatial Modeling: From Attention to Convolution, arXiv 2212.12552
Hardware:  8 GPUs, 128 images each
Run:       tools/dist_train.sh configs/classification/fcvit_s12_in1k.py 8
Published: top-1 80.9; tiny: 74.9, s24: 82.5, s48: 83.6
"""

_base_ = [
    "../_base_/models/classifier_fcvit.py",
    "../_base_/datasets/imagenet.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime_classification.py",
]
