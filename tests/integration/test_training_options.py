"""Options of a training, by what they write: --logger, --patience, --seed."""

import json
import re
import struct
from collections.abc import Iterator, Sequence

import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmseg.visualization import SegLocalVisualizer

from helpers.tools import CONFIGS, TEST, load_tool
from helpers.trainings import NO_WORKERS

SMALLEST = "dict(_delete_=True, layers=(1,)*4, dims=(8,16,16,32), mlp_ratios=(2,)*4)"
SCORES = (0.3, 0.4, 0.4, 0.4, 0.5)


OPTIONS = [
    "train_cfg.max_iters=5",
    "train_cfg.val_interval=1",
    "default_hooks.logger.interval=1",
    "default_hooks.checkpoint.interval=5",
    "model.data_preprocessor.size=(64,64)",
    f"model.backbone.arch={SMALLEST}",
    "model.neck.in_channels=[8,16,16,32]",
    "train_dataloader.batch_size=2",
    "val_dataloader.num_workers=0",
    "val_dataloader.persistent_workers=False",
    "val_evaluator=dict(_delete_=True, type='FixedScores')",
]


@METRICS.register_module()
class FixedScores(BaseMetric):
    """Gives one score after the other, whatever the model predicts."""

    def __init__(self, scores: Sequence[float] = SCORES) -> None:
        super().__init__()
        self.left = [*scores]

    def process(self, data_batch, data_samples) -> None:
        self.results.append(None)

    def compute_metrics(self, results) -> dict[str, float]:
        return {"mIoU": self.left.pop(0)}


@pytest.mark.official
def test_a_training_with_patience_a_seed_and_a_logger(example_data, monkeypatch, tmp_path, capfd):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(example_data)
    load_tool("train").main(
        [str(CONFIGS["semantic_fpn"]), "--work-dir", str(tmp_path), "--patience", "2", "--seed",
         "17", "--logger", "tensorboard", "--cfg-options", *OPTIONS, *NO_WORKERS]
    )  # fmt: skip
    said = capfd.readouterr().out
    # 0.4 is the best; it is only reached again after iterations 3 and 4
    assert len(re.findall(r"Iter\(val\).* mIoU: ", said)) == 4
    assert "Iter(train) [4/5]" in said and "Iter(train) [5/5]" not in said
    assert "did not improve in the last 2 records. best score: 0.400" in said
    assert "seed 17" in said and "best_mIoU_iter_2.pth" in said

    (file,) = tmp_path.rglob("events.out.tfevents.*")
    written = EventAccumulator(str(file)).Reload()
    scores = [(event.step, round(event.value, 6)) for event in written.Scalars("mIoU")]
    assert scores == [*enumerate(SCORES[:4], 1)]
    losses = [event.value for event in written.Scalars("loss")]
    printed = [float(loss) for loss in re.findall(r"Iter\(train\).* loss: (\d+\.\d+)", said)]
    assert losses == pytest.approx(printed, abs=1e-4) and len(losses) == 4

    # the work directory's config has logger and patience, which are nothing for a test
    SegLocalVisualizer._instance_dict.clear()  # another process has none yet
    load_tool("test").main([str(tmp_path), "--cfg-options", *TEST])
    assert [*tmp_path.rglob("events.out.tfevents.*")] == [file]


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Give the records of a .wandb file: LevelDB's log format behind a header of 7 bytes.

    Blocks of 32 KiB hold parts of records: checksum (4 bytes), length (2), kind (1), data.
    """
    start, record = 7, b""
    while start + 7 < len(content):
        if (rest := 2**15 - start % 2**15) < 7:  # too little for another part
            start += rest
            continue
        length, kind = struct.unpack("<HB", content[start + 4 : start + 7])
        start += 7 + length
        record += content[start - length : start]
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.slow
def test_weights_and_biases_and_mlflow_get_what_is_printed(
    example_data, monkeypatch, tmp_path, capfd
):
    from mlflow import MlflowClient
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    monkeypatch.chdir(example_data)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    load_tool("train").main(
        [str(CONFIGS["semantic_fpn"]), "--work-dir", str(tmp_path), "--logger", "wandb", "mlflow",
         "--cfg-options", *OPTIONS, *NO_WORKERS]
    )  # fmt: skip
    said = capfd.readouterr().out
    printed = [float(loss) for loss in re.findall(r"Iter\(train\).* loss: (\d+\.\d+)", said)]
    assert len(printed) == 5

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == tmp_path.name)
    (run,) = client.search_runs([experiment.experiment_id])
    written = {
        name: [metric.value for metric in client.get_metric_history(run.info.run_id, name)]
        for name in ("loss", "mIoU")
    }
    assert written["loss"] == pytest.approx(printed, abs=1e-4)
    assert written["mIoU"] == pytest.approx(SCORES)

    (file,) = tmp_path.rglob("run-*.wandb")
    logged: dict[str, list[float]] = {"loss": [], "mIoU": []}
    for data in wandb_records(file.read_bytes()):
        for item in Record.FromString(data).history.item:
            for name in (item.key, *item.nested_key):
                if name in logged:
                    logged[name].append(json.loads(item.value_json))
    assert logged["loss"] == pytest.approx(printed, abs=1e-4)
    assert logged["mIoU"] == pytest.approx(SCORES)


@pytest.mark.official
def test_a_checkpoint_that_found_nothing_is_not_the_best(
    example_data, monkeypatch, tmp_path, capfd
):
    monkeypatch.chdir(example_data)
    options = ["train_cfg.max_iters=2", "default_hooks.checkpoint.interval=2",
               "val_evaluator.scores=[0.0,0.0]"]  # fmt: skip
    load_tool("train").main(
        [str(CONFIGS["semantic_fpn"]), "--work-dir", str(tmp_path), "--cfg-options", *OPTIONS,
         *NO_WORKERS, *options]
    )  # fmt: skip
    assert [path.name for path in tmp_path.glob("*.pth")] == ["iter_2.pth"]
    assert "last checkpoint: " in capfd.readouterr().out
