"""The bar of a training or test on a terminal, and the lines that it replaces."""

import io
import logging
import sys

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from fcvit_mm.engine.progress import showing_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Line(BaseModel):
    """Fits numbers by a line."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, inputs, mode="loss"):
        error = self.line(torch.stack(inputs)).square().mean()
        return {"loss": error} if mode == "loss" else [error]


class Error(BaseMetric):
    def process(self, data_batch, data_samples) -> None:
        self.results.append(data_samples[0].item())

    def compute_metrics(self, results) -> dict:
        return {"error": sum(results)}


def runner(work_dir, name) -> Runner:
    loader = dict(
        batch_size=2,
        dataset=[dict(inputs=torch.ones(1))] * 6,
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="pseudo_collate"),
    )
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=loader,
        val_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        val_evaluator=dict(type=Error),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(logger=dict(type="LoggerHook", interval=1)),
        default_scope="mmengine",
        experiment_name=name,
    )


def test_a_terminal_shows_a_bar_and_the_log_file_every_line(tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    running = runner(tmp_path, "bar")
    with showing_progress(running):
        running.train()
    running.logger.info("and below the bar")
    shown = screen.getvalue()
    (log,) = tmp_path.rglob("*.log")
    lines = log.read_text()
    assert "training" in shown and "6/6" in shown and "loss 0." in shown
    assert "validation" in shown and "3/3" in shown
    assert "Epoch(val) [2][3/3]    error: " in shown and "Epoch(train)" not in shown
    assert lines.count("Epoch(train)") == 6 and shown.endswith("and below the bar\n")


def test_a_training_that_ends_with_an_error_gives_the_terminal_back(tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    running = runner(tmp_path, "error")
    with pytest.raises(ArithmeticError), showing_progress(running):
        raise ArithmeticError
    assert sys.stdout is screen
    assert all(
        handler.stream is screen
        for handler in running.logger.handlers
        if type(handler) is logging.StreamHandler
    )


def test_elsewhere_there_are_lines_and_no_bar(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    running = runner(tmp_path, "lines")
    with showing_progress(running):
        running.train()
    shown = sys.stdout.getvalue()
    assert shown.count("Epoch(train)") == 6 and "validation" not in shown
