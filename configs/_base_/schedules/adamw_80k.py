# 80k iterations of AdamW in half precision, with half the batch size and learning rate of the 40k
# schedule: PVT's (arXiv 2102.12122) for Semantic FPN.
_base_ = "./adamw_40k.py"

optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=80000),
]
train_cfg = dict(max_iters=80000)

# 8 GPUs with 2 images each
auto_scale_lr = dict(base_batch_size=16)
