"""MMEngine resumes from its own checkpoints although they are read without running their code."""

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from fcvit_mm import read_checkpoint

pytestmark = pytest.mark.official


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x, y, mode):
        return {"loss": (self.layer(x) - y).square().mean()}


def runner(work_dir: Path, epochs: int, **kwargs) -> Runner:
    data = [{"x": torch.tensor([i / 8]), "y": torch.tensor([i / 4])} for i in range(8)]
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=dict(
            dataset=data,
            batch_size=2,
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.1)),
        param_scheduler=dict(type="CosineAnnealingLR", T_max=4),
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
        experiment_name=f"{work_dir.name}-{epochs}-{len(kwargs)}",
        randomness=dict(seed=0),
        **kwargs,
    )


class Interrupt(Hook):
    priority = "LOWEST"  # after the checkpoint was written

    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt


def test_a_checkpoint_of_mmengine_resumes_and_equals_the_whole_run(tmp_path):
    start = Line().state_dict()
    whole = runner(tmp_path / "whole", 4)
    whole.model.load_state_dict(start)
    whole.train()
    interrupted = runner(tmp_path / "resumed", 4, custom_hooks=[Interrupt()])
    interrupted.model.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    resumed = runner(tmp_path / "resumed", 4, resume=True)
    resumed.train()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)
        assert not torch.equal(interrupted.model.state_dict()[key], value)
    histories = [run.message_hub.get_scalar("train/loss").data[0] for run in (whole, resumed)]
    assert len(histories[0]) == 16 and (histories[0] == histories[1]).all()


def test_resume_executes_no_config_text_of_a_checkpoint(tmp_path):
    runner(tmp_path, 2).train()
    path, mark = tmp_path / "epoch_2.pth", tmp_path / "ran"
    content = read_checkpoint(path)
    content["meta"]["config"] = f"open({str(mark)!r}, 'w').close()"
    content["message_hub"]["runtime_info"]["cfg"] = content["meta"]["config"]
    torch.save(content, path)
    resumed = runner(tmp_path, 4, resume=True)
    resumed.train()
    assert not mark.exists()
    # the next checkpoint has the config of this run
    assert resumed.message_hub.get_info("cfg") == resumed.cfg.pretty_text
