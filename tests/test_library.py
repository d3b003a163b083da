"""`evaluate` takes what the command line takes, and refuses what it refuses in the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import runner
from runner import evaluate, record
from runner.load import BadInput

if TYPE_CHECKING:
    from pathlib import Path

CONV = "convtranspose2d"

# name -> (arguments, what the line has to hold)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "problem": (
        {"problem": "convtranpose2d"},
        "unknown problem 'convtranpose2d': did you mean convtranspose2d",
    ),
    "dtype": ({"dtypes": ["fp32", "fp99"]}, "unknown dtype 'fp99': did you mean fp32"),
    "dtype as a text": ({"dtypes": "fp99"}, "unknown dtype 'fp99': did you mean fp32"),
    "no dtype": ({"dtypes": []}, "unknown dtype '': known: bf16, fp16, fp32"),
    "no name at all": ({"dtypes": [16]}, "unknown dtype '16': did you mean fp16"),
    "math": ({"maths": ["x"]}, "unknown math 'x': known: fp32, tf32"),
    "no math": ({"maths": ()}, "unknown math ''"),
    "no list": ({"dtypes": 5}, "5 is no name and no list of names"),
    "no text for a shape": ({"shapes": [5]}, "unknown sweep or shape '5'"),
    "shape": ({"shapes": "smok"}, "unknown sweep or shape 'smok': did you mean smoke"),
    "shape field": ({"shapes": ["batch=0"]}, "batch=0"),
    "baseline": ({"baselines": "cuddn"}, "unknown baseline 'cuddn': did you mean cudnn"),
    "device": ({"device": "gpu"}, "--device 'gpu': cpu, cuda or cuda:N"),
    "card": ({"card": "rtx409"}, "unknown card 'rtx409': did you mean rtx4090"),
    "no time": ({"timeout_s": 0}, "timeout_s=0 is not a positive number up to 1000000"),
    "no number": ({"timeout_s": "5"}, "timeout_s='5' is not a positive number"),
    "no memory": ({"memory_bytes": -1}, "memory_bytes=-1 is not a positive whole number"),
    "half a byte": ({"memory_bytes": 150e6}, "memory_bytes=150000000.0 is not a positive whole number"),
    "SMs": ({"sms": 64}, "--sms 64 restricts a GPU"),
    "two protocols": ({"quick": True, "ranked": True}, "quick and ranked exclude each other"),
    "source": ({"source": b"x = 1"}, "the source is of type bytes: give the solution's text, a str"),
    "no text": ({"source": "x = '\ud800'"}, "'candidate' is not UTF-8 (byte 5)"),
    "NUL": ({"source": "x = 1\0"}, "'candidate' holds NUL bytes"),
    "name": (
        {"name": "../up"},
        "name '../up' cannot name records: letters, digits, '_' and '-' can, as in 'up'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_command_line_refuses_is_refused(name: str) -> None:
    arguments, part = REFUSED[name]
    with pytest.raises(BadInput) as caught:
        evaluate(**{"source": "x = 1\n", "problem": CONV, "device": "cpu", **arguments})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_is_one_name_and_a_folder_may_be_a_text(tmp_path: Path) -> None:
    found = evaluate(
        "x = 1\n",
        CONV,
        shapes="smoke/sparse",
        dtypes="fp16",
        maths="tf32",
        device="cpu",
        results=str(tmp_path),
    )
    assert [(one.cell.label, one.cell.dtype, one.status) for one in found] == [("sparse", "fp16", "BUILD")]
    assert record.read(tmp_path / "cpu" / CONV / "candidate.jsonl")[0] == found


def test_limits_are_those_that_are_given(tmp_path: Path) -> None:
    sleeps = "import time\nclass ModelNew:\n    def __init__(self, *_): time.sleep(60)\n"
    (found,) = evaluate(
        sleeps,
        CONV,
        shapes="smoke/sparse",
        dtypes="fp16",
        device="cpu",
        results=tmp_path,
        timeout_s=0.5,
        memory_bytes=2**32,
    )
    assert found.status == "TIMEOUT"
    assert found.environment["limits"] == {"call_s": 0.5, "memory_bytes": 2**32}


def test_what_there_is_can_be_listed() -> None:
    assert "evaluate" in dir(runner)
