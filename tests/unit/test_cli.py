"""Types of arguments of the tools."""

import argparse

import pytest

from fcvit_mm.utils.cli import fraction, run_tool


def test_a_fraction_is_a_number_from_0_to_1() -> None:
    assert [fraction(text) for text in ("0", "0.25", "1")] == [0, 0.25, 1]
    for text in ("-0.1", "1.1", "nan", "half"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"{text} must be a number from 0"):
            fraction(text)


def test_ctrl_c_is_a_word_and_status_130(capsys) -> None:
    def main(_) -> None:
        raise KeyboardInterrupt

    assert run_tool(main) == 130
    assert capsys.readouterr().err == "\nstopped\n"
