"""Types of arguments of the tools, and what ends a tool from outside."""

import argparse
import os
import signal
import subprocess
import sys

import pytest

from fcvit_mm import __main__
from fcvit_mm.utils.cli import fraction, run_tool
from fcvit_mm.utils.files import atomic_write
from helpers import ROOT

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def test_a_fraction_is_a_number_from_0_to_1() -> None:
    assert [fraction(text) for text in ("0", "0.25", "1")] == [0, 0.25, 1]
    for text in ("-0.1", "1.1", "nan", "half"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} must be a number from 0"):
            fraction(text)


@BOTH
def test_a_signal_amid_writing_is_a_word_and_leaves_what_was_there(
    capsys, tmp_path, number
) -> None:
    target = tmp_path / "a.json"
    target.write_text("before")

    def main(_) -> None:
        with atomic_write(target) as partial:
            partial.write_text("half")
            signal.raise_signal(number)

    handler = signal.getsignal(number)
    assert run_tool(main) == 128 + number
    assert capsys.readouterr().err == "\nstopped\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("tool", ["train.py", "test.py", "deployment/export.py"])
def test_ctrl_c_amid_imports_prints_no_traceback(tmp_path, tool) -> None:
    (tmp_path / "torch.py").write_text("import os\nos.kill(os.getpid(), 2)\n")
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / tool], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )  # fmt: skip
    # what a shell calls 130
    assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


def test_ctrl_c_amid_the_imports_of_a_tool_is_status_130(monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__.runpy, "run_path", interrupted)
    monkeypatch.setattr(sys, "argv", ["fcvit"])
    with pytest.raises(SystemExit) as end:
        __main__.main(["train"])
    assert end.value.code == 130
