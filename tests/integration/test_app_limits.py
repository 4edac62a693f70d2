"""What bounds the page in the browser, without a model."""

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from fcvit_mm.apis.result import Result
from fcvit_mm.demos import app
from fcvit_mm.utils.errors import ConfigError
from fcvit_mm.visualization.images import check_size
from helpers.tools import free_port


def fill(folder: Path, *sizes: int) -> list[Path]:
    """Write files of some sizes, each younger than the one before."""
    paths = [folder / f"{i}/file" for i in range(len(sizes))]
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(size))
        os.utime(path, (i, i))
    return paths


def test_the_oldest_uploads_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "QUOTA", 1000)
    paths = fill(tmp_path, 300, 300, 300)
    client = TestClient(app.guard(PlainTextResponse("ok"), tmp_path), "http://localhost:7860")
    assert client.post("/gradio_api/upload", content=bytes(100)).text == "ok"
    assert [path.exists() for path in paths] == [True, True, True]
    assert client.post("/gradio_api/upload", content=bytes(500)).text == "ok"
    assert [path.exists() for path in paths] == [False, False, True]
    # what the page draws counts, too, and an event may be all that comes
    assert client.post("/gradio_api/queue/join", content=bytes(900)).text == "ok"
    assert not any(path.exists() for path in paths)


def test_a_request_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "MAX_UPLOAD", 1000)
    monkeypatch.setattr(app, "MAX_REQUEST", 100)
    client = TestClient(app.guard(PlainTextResponse("ok"), tmp_path), "http://localhost:7860")
    assert client.post("/gradio_api/upload", content=bytes(1000)).status_code == 200
    assert client.post("/gradio_api/upload", content=bytes(1001)).status_code == 413
    assert client.post("/gradio_api/queue/join", content=bytes(101)).status_code == 413
    # of no stated length
    assert client.post("/gradio_api/upload", content=iter([b"x"])).status_code == 413


@pytest.fixture(autouse=True)
def no_maps(monkeypatch) -> None:
    contexts = [SimpleNamespace(stage=1, block=1)]
    monkeypatch.setattr(app, "contexts_of", lambda predictor, image: (image, contexts))


class Fake:
    """A classifier of one class."""

    task, classes, calls = "classification", ("all",), 0

    def __call__(self, image: np.ndarray) -> Result:
        self.calls += 1
        scores, labels = np.ones(1, np.float32), np.zeros(1, int)
        return Result(image, self.classes, [(255, 0, 0)], scores=scores, labels=labels)


def test_a_large_image_is_shrunk_and_few_are_kept(tmp_path):
    predictor: Any = Fake()
    actions = app._Actions(predictor)
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((1500, 6000), np.uint8))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((15, 60), np.uint8))
    image, rows, file = actions.show(str(tmp_path / "large.png"), 0.5)
    assert image.shape == (707, 2828, 3) and rows == [["all", 1]] and file is None
    image, *_ = actions.show(str(tmp_path / "small.png"), 0.5)
    assert image.shape == (15, 60, 3)
    actions.show(str(tmp_path / "large.png"), 0.7)
    assert predictor.calls == 2
    assert actions.find.cache_info().maxsize == 4
    actions.scale = 4.0
    assert actions.show(str(tmp_path / "large.png"), 0.5)[0].shape == (707, 2828, 3)
    assert actions.show(str(tmp_path / "small.png"), 0.5)[0].shape == (60, 240, 3)


def test_one_prediction_at_a_time_and_a_bounded_queue(monkeypatch):
    running, most, go_on = 0, 0, threading.Event()

    def predict(actions: Any, path: str, threshold: float) -> app.Shown:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go_on.wait(600)
        running -= 1
        return app.NOTHING

    monkeypatch.setattr(app._Actions, "show", predict)
    monkeypatch.setattr(app, "MAX_WAITING", 10)
    page = app.build(SimpleNamespace(task="detection"), "", [])  # type: ignore[arg-type]
    (call,) = [call for call in page.fns.values() if call.api_name == "predict"]
    _, address, _ = page.launch(
        server_port=free_port(), quiet=True, prevent_thread_lock=True, ssr_mode=False
    )
    try:
        with httpx.Client(base_url=address, timeout=300) as client:
            job = {"data": [None, 0.5], "fn_index": call._id, "session_hash": "a"}
            answers = [client.post("gradio_api/queue/join", json=job) for _ in range(20)]
            refused = [answer for answer in answers if answer.status_code == 503]
            assert 8 <= len(refused) <= 10  # one or two run meanwhile
            assert "Queue is full" in refused[0].text
            go_on.set()
            end = time.monotonic() + 300
            while len(page._queue) and time.monotonic() < end:
                time.sleep(0.05)
            assert not len(page._queue) and most == 1
    finally:
        go_on.set()
        page.close()


def test_a_file_that_is_no_image_is_a_sentence(tmp_path):
    for name in ("a.png", "."):
        with pytest.raises(ConfigError, match="is not an image"):
            check_size(tmp_path / name, 10, 10)
