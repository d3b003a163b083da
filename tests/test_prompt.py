"""The page carries every fact of the case it was modelled on; replies are judged by the rules it prints.

`python -m tests.test_prompt` renews the page that is kept in `data/`; read what it changes.
"""

from __future__ import annotations

import ast
import json
import string
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from runner import answer, cli, failures, lint, load, prompt, prompt_metrics, record, stages
from runner.cards import card_names, load_card
from runner.commands import exits
from runner.guidance import guidance
from runner.output_rules import OUTPUT_RULES
from runner.retarget import Compiled, Forward
from runner.schema import PROTOCOL, SCHEMA, Cell, Checked, Failed, Record, Status

ROOT = Path(__file__).parents[1]
#: A kernel profiled on an RTX 4090: KernelBench's problem 81 in 64x64 tiles.
PROFILE = {
    "conv_transpose2d_kernel": {
        "sm__throughput.avg.pct_of_peak_sustained_elapsed": 51.35,
        "launch__grid_size": 50721,
        "sm__warps_active.avg.pct_of_peak_sustained_active": 16.6,
        "dram__throughput.avg.pct_of_peak_sustained_elapsed": 9.76,
        "lts__t_sector_hit_rate.pct": 99.49,
    }
}
CELL = Cell("kernelbench", "81", {}, "fp32", "tf32")
#: That profile as the suite keeps it, and the page with it.
OWNER_PROFILE = ROOT / "runner" / "stages" / "owner_profile.json"
SNAPSHOT = ROOT / "tests" / "data" / "prompt_convtranspose2d_gather_gemm_grid_rtx4090.md"
#: Public lists of metrics still have it, but no chip since Volta does.
DEAD = "smsp__warp_issue_stalled_memory_dependency_per_warp_active.pct"
#: What a page has to say, each as the words that stand there on one line.
FACTS = {
    "card": [
        *(
            "4090",
            "Architecture: Ada Lovelace",
            "Compute capability: 8.9",
            "SMs: 128",
            "bandwidth: 1008 GB/s",
        ),
        *("TF32 Tensor Core TFLOPS: 82.6, dense", "BF16 Tensor Core TFLOPS: 165.2, dense"),
        *("FP16 Tensor Core TFLOPS: 165.2, dense", "Registers per thread, at most: 255"),
        *("Threads per block, at most: 1024", "Threads per SM, at most: 1536", "Warp size: 32"),
        *("Warps per SM, at most: 48", "Shared memory per SM: 100 KB", "memory per block, at most: 99 KB"),
        "L2 cache, shared by all SMs: 72 MB",
    ],
    "guidance": [
        *("Conv2D, Conv3D", "Slower than PyTorch?", "(for kh: for kw: ...)", "low compute density"),
        *("implicit GEMM", "(N*OH*OW, OC) in 2D", "(N*OD*OH*OW, OC) in 3D", "(OC, IC*KH*KW) in 2D"),
        *(
            "(OC, IC*KD*KH*KW) in 3D",
            "IC * kernel_elements",
            "tiles of BLOCK_K",
            "(output_pos, k_offset) on the fly",
        ),
        *("tl.dot()", "Tensor Cores", "for k in range(0, K, BLOCK_K):", "decode k -> (ic, kd, kh, kw)"),
        *("input address = output position + kernel offset", "input tile [BLOCK_M, BLOCK_K]"),
        *("weight tile [BLOCK_K, BLOCK_N]", "acc += tl.dot(a_tile, b_tile)"),
    ],
    "stage": [
        *("Focus: grid layout and parallelism", "sm__throughput.avg.pct_of_peak_sustained_elapsed (> 60 %)"),
        *("- launch__grid_size", "1D: (cdiv(N, BLOCK))", "2D: (cdiv(M, BLOCK_M), cdiv(N, BLOCK_N))"),
        *("3D: (batch, cdiv(M, BLOCK_M), cdiv(N, BLOCK_N))", "flatten only those that are independent"),
        *("batch, head or expert before making BLOCK smaller", "only if SM utilisation is clearly low"),
    ],
    "safety": [
        *("at most 3 dimensions and a static rank", "grid=(G0, G1, G2) matches tl.program_id(0/1/2)"),
        "If unsure about correctness, do not change the grid",
    ],
    "autotune": [
        *("either BLOCK_* or (num_warps, num_stages)", "grid=lambda META: (...)"),
        "never in both kernel and launch",
    ],
    "profile": [
        *PROFILE,
        *(f'"{name}": {value}' for name, value in PROFILE["conv_transpose2d_kernel"].items()),
    ],
    "task": ["**Task**: Read the metrics and the code", "performs best"],
    "output": [
        *("exactly this order", "1. imports: torch, torch.nn, triton, triton.language as tl"),
        *("2. kernel functions, each under @triton.jit", "3. wrapper functions", "launch the kernels"),
        *("4. class ModelNew(nn.Module), which calls your kernels", "testing code, if __name__"),
        *("get_inputs and get_init_inputs", "```python\n# <optimized Triton code>\n```"),
    ],
}


def owners_page() -> str:
    """Return the owner's case; without records, which may be added any day."""
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    return prompt.page(
        problem,
        solution,
        stages.load_stage("grid"),
        load_card("rtx4090"),
        shapes=["kernelbench/81"],
        profile=OWNER_PROFILE,
        results=ROOT / "absent",
    )


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps({"device": "rtx4090", "metrics": PROFILE}))
    return file


def page(stage: str = "grid", *arguments: str | Path, solution: str = "gather_gemm") -> str:
    """Return what the command prints; it predicts nothing, which would take seconds."""
    command = [sys.executable, "-m", "runner", "prompt", "--problem", "convtranspose2d", "--stage", stage]
    command += ["--solution", solution, "--no-run", *map(str, arguments)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60)
    assert said.stderr == ""
    return said.stdout


@pytest.fixture
def modelled(profile: Path) -> str:
    return page("grid", "--card", "rtx4090", "--profile", profile, "--shapes", "kernelbench/81")


def test_the_page_carries_every_fact_of_its_model(modelled: str) -> None:
    missing = [fact for facts in FACTS.values() for fact in facts if fact not in modelled]
    assert missing == []
    assert (ROOT / "solutions/convtranspose2d/gather_gemm.py").read_text().rstrip() in modelled
    assert "batch=16 in_channels=32 out_channels=64 height=64 width=128 kernel_size=3 stride=5" in modelled
    assert "not measured" not in modelled


def test_the_page_is_the_one_that_is_kept() -> None:
    assert f"{owners_page()}\n" == SNAPSHOT.read_text(), "if it should differ: python -m tests.test_prompt"


def test_the_sections_stand_in_the_order_of_the_model(modelled: str) -> None:
    headings = (
        "# Target GPU",
        "# Algorithm",
        "[OPTIMIZATION STAGE]",
        "Metrics:",
        "Rules:",
        "Safety:",
        "Autotune:",
        "[CURRENT CODE]",
        "[NCU PROFILING METRICS]",
        "**Task**",
        "OUTPUT RULES (STRICT):",
    )
    lines = modelled.splitlines()
    places = [next(n for n, line in enumerate(lines) if line.startswith(heading)) for heading in headings]
    assert places == sorted(places)


def values(stage: stages.Stage) -> dict[str, str]:
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    card = load_card("rtx4090")
    metrics = prompt_metrics.section(stage, None, problem, solution, [CELL], card, None)
    return prompt.values(problem, solution, stage, card, (), metrics, "Nothing.")


def test_every_placeholder_is_filled_and_every_value_has_its_place() -> None:
    names = [name for _, name, _, _ in string.Formatter().parse(prompt.PAGE) if name is not None]
    assert sorted(names) == sorted(values(stages.load_stage("grid")))


def test_every_field_of_a_stage_is_shown() -> None:
    marks = {
        "focus": "the focus",
        "metrics": (stages.Metric("the_metric", "the target"),),
        "rules": ("the rule",),
        "safety": ("the safety",),
    }
    assert set(marks) == {field.name for field in fields(stages.Stage)}
    text = prompt.PAGE.format(**values(stages.Stage(**marks)))
    for mark in ("the focus", "the_metric (the target)", "- the rule", "- the safety"):
        assert mark in text


@pytest.mark.parametrize("name", stages.stage_names())
def test_a_stage_is_complete_and_asks_for_no_dead_metric(name: str) -> None:
    stage = stages.load_stage(name)
    assert stage.focus
    assert stage.rules
    assert stage.safety
    assert any(metric.target for metric in stage.metrics)
    names = [metric.name for metric in stage.metrics]
    assert len(set(names)) == len(names)
    assert DEAD not in names
    text = prompt.PAGE.format(**values(stage))
    for metric in names:
        assert f"{metric}: not measured" in text


def test_the_stages_are_those_of_the_folder() -> None:
    assert stages.stage_names() == ("grid", "memory", "pipelining", "tiling")


@pytest.mark.parametrize("name", card_names())
def test_every_card_fills_the_page(name: str) -> None:
    card = load_card(name)
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    text = prompt.page(problem, solution, stages.load_stage("grid"), card)
    assert f"SMs: {card.sms}\n" in text
    assert "kernelbench/57" in text


def test_only_operators_that_the_code_names_get_guidance() -> None:
    for layer in (f"Conv{transpose}{axes}d" for transpose in ("", "Transpose") for axes in (1, 2, 3)):
        assert "implicit GEMM" in guidance(f"import torch.nn as nn\nlayer = nn.{layer}(1, 1, 3)")
    assert guidance('"""Not nn.Conv2d."""\nlayer = nn.Linear(1, 1)  # nn.Conv2d') == ""


def test_a_stages_metric_that_was_not_measured_is_marked(profile: Path) -> None:
    text = page("tiling", "--profile", profile, "--shapes", "kernelbench/81")
    assert "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active: not measured" in text
    assert "sm__warps_active.avg.pct_of_peak_sustained_active: not measured" not in text
    assert '"sm__warps_active.avg.pct_of_peak_sustained_active": 16.6' in text


def test_what_was_not_measured_is_predicted_where_compiling_tells_it(profile: Path) -> None:
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    card, stage = load_card("rtx4090"), stages.load_stage("tiling")
    text = prompt.page(
        problem, solution, stage, card, shapes=["kernelbench/81"], profile=profile, predict_s=120
    )
    told = text.partition("[NCU PROFILING METRICS]\n")[2].partition("\n[WHAT FAILED")[0]
    mark = "Predicted for kernelbench/81 in tf32 by compiling for the GeForce RTX 4090, not measured:\n"
    measured, _, rest = told.partition(mark)
    assert json.loads(measured.partition("\n")[2]) == PROFILE
    predicted, end = json.JSONDecoder().raw_decode(rest)
    (metrics,) = predicted.values()
    assert set(metrics) == {"launch__registers_per_thread", "launch__occupancy_limit_registers"}
    # what ncu saw of warps follows from both: four to a program
    assert 4 * metrics["launch__occupancy_limit_registers"] / 48 == pytest.approx(0.166, abs=1e-2)
    assert rest[end:].split() == [
        *("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active:", "not", "measured"),
        *("launch__occupancy_limit_shared_mem:", "not", "measured"),
    ]


def test_what_does_not_run_is_not_predicted_but_said(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("class ModelNew:\n    def __init__(self, *_):\n        raise RuntimeError\n")
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution(str(file), problem.name)
    kernels, stops, tuned = prompt_metrics.predict(problem, solution, CELL, load_card("rtx4090"), 60)
    assert (kernels, [text.split()[0] for text in stops], tuned) == ({}, ["RuntimeError:"], [])


def test_a_launch_that_the_card_cannot_take_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an autotuned launch one configuration that fits is enough."""
    made = Compiled(0, "kernel", (128, 1, 1), "", 1, 1, {}, 4, 2, 1, 64, 0, 10**6, "x", "64x64", "tf32")
    wide = replace(made, call=1, kernel="wide", grid=(1, 1, 65_536), program_ids="xz", shared_bytes=0)
    tuned = [replace(made, call=2, kernel="tuned", choice=n, choices=2) for n in (1, 2)]
    tuned[1] = replace(tuned[1], shared_bytes=1024)
    forward = Forward(0, 0, "3.9.0", (made, wide, *tuned))
    monkeypatch.setattr(prompt_metrics, "retarget", lambda *_: [forward])
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    card, stage = load_card("rtx4090"), stages.load_stage("grid")
    told = prompt_metrics.section(stage, None, problem, solution, [CELL], card, 60)
    mark = "Compiled for the GeForce RTX 4090, this code stops in kernelbench/81 in tf32:\n"
    assert told.partition(mark)[2].splitlines()[:4] == [
        "- kernel: does not fit: 1000000 bytes of shared memory, at most 101376",
        "- wide: does not fit: 65536 programs along z, at most 65535",
        "Not predicted, since an autotuner chooses: tuned",
        "Predicted for kernelbench/81 in tf32 by compiling for the GeForce RTX 4090, not measured:",
    ]


def a_failure(place: str, reason: str, detail: str = "", **changes: object) -> Record:
    problem = load.find_problem("convtranspose2d")
    sweep, label = place.split("/")
    one = Record(
        schema=SCHEMA,
        protocol=PROTOCOL,
        time_utc="2026-01-02T00:00:00+00:00",
        problem=problem.name,
        problem_digest=problem.digest,
        solution="gather_gemm",
        solution_digest=load.find_solution("gather_gemm", problem.name).digest,
        technique="",
        author="",
        runner_digest="",
        cell=Cell(sweep, label, {}, "fp16", "tf32"),
        card="cpu",
        environment={},
        entropy="",
        status=Status.WRONG,
        failed=Failed(Status.WRONG, "check", reason, detail),
        checked=None,
        timed=None,
        comparisons=(),
        roofline={},
        waves=(),
        flags=(),
    )
    return replace(one, **changes)


def test_what_failed_last_time_is_told_once_for_this_code(tmp_path: Path) -> None:
    path = record.results_path(tmp_path, "cpu", "convtranspose2d", "gather_gemm")
    assert "This code has not been run." in page("grid", "--results", tmp_path)
    for one in (
        a_failure("smoke/a", "row 3 differs", "first line\nlast line"),
        a_failure("smoke/b", "row 3 differs"),
        a_failure("smoke/c", "of another text", solution_digest="0" * 64),
        a_failure("smoke/d", "no fault", status=Status.ERROR, failed=Failed(Status.ERROR, "judge", "died")),
    ):
        record.append(path, one)
    text = page("grid", "--results", tmp_path)
    assert "- smoke/a fp16 and 1 more: WRONG: row 3 differs\n    first line\n    last line\n" in text
    assert "of another text" not in text
    assert "died" not in text


def test_what_passed_is_told_from_what_nobody_judged(tmp_path: Path) -> None:
    path = record.results_path(tmp_path, "cpu", "convtranspose2d", "gather_gemm")
    checked = Checked((), kernelbench_close=True, calls=1, launches=())
    record.append(path, a_failure("smoke/a", "", status=Status.PASS, failed=None, checked=checked))
    died = Failed(Status.ERROR, "judge", "died")
    record.append(path, a_failure("smoke/b", "died", status=Status.ERROR, failed=died))
    assert "Nothing: of 2 recorded cells of this code 1 passed, 1 ERROR." in page(
        "grid", "--results", tmp_path
    )


def test_code_with_fences_stays_inside_its_fence(tmp_path: Path) -> None:
    file = tmp_path / "fenced.py"
    file.write_text('"""Technique.\n\n```\nexample\n```\n"""\nclass ModelNew: ...\n')
    text = page("grid", "--results", tmp_path, solution=str(file))
    assert f"````python\n{file.read_text().rstrip()}\n````" in text


def test_a_foreign_problem_has_a_page(tmp_path: Path) -> None:
    problem = tmp_path / "81_theirs.py"
    problem.write_text("class Model: ...\ndef get_inputs(): ...\ndef get_init_inputs(): ...\n")
    solution = load.find_solution("gather_gemm", "convtranspose2d")
    text = prompt.page(
        load.find_problem(str(problem)),
        solution,
        stages.load_stage("grid"),
        load_card("h200"),
        results=tmp_path,
    )
    assert "- kernelbench/81_theirs\n" in text
    assert f"```python\n{problem.read_text()}```" in text
    assert "# Algorithm" not in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"--stage": "gird"}, "did you mean grid"),
        ({"--card": "rtx4080"}, "did you mean rtx4090"),
        ({"--shapes": "kernelbench/80"}, "unknown sweep or shape"),
        ({"--solution": "gather"}, "did you mean gather_gemm"),
        ({"--stage": None}, "a prompt needs --stage"),
        ({"--stage": None, "--solution": None}, "a prompt needs --solution, --stage"),
        ({"--profile": "absent.json"}, "cannot read 'absent.json'"),
        ({"--feedback": "absent.json"}, "cannot read 'absent.json'"),
        ({"--dtype": "fp99"}, "unknown dtype 'fp99': did you mean fp"),
        ({"--math": "fp16"}, "unknown math 'fp16'"),
        ({"--device": "cpu"}, "--device is for --answer"),
        ({"--memory": "1"}, "--memory is for --answer"),
        ({"--profile": str(OWNER_PROFILE), "--card": "h200"}, "measured on card 'rtx4090', not 'h200'"),
        (
            {"--profile": str(OWNER_PROFILE), "--problem": "conv2d", "--solution": "implicit_gemm"},
            "measured on problem 'convtranspose2d', not 'conv2d'",
        ),
    ],
)
def test_bad_input_is_one_line(
    arguments: dict[str, str | None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--problem": "convtranspose2d", "--solution": "gather_gemm", "--stage": "grid"} | arguments
    words_given = [word for name, value in given.items() if value is not None for word in (name, value)]
    assert cli.main(["prompt", *words_given]) == exits.EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"metrics": []}',
        '{"metrics": {"k": 1}}',
        '{"metrics": {"k": {"m": "1"}}}',
        '{"metrics": {"k": {"m": 1e400}}}',
        '{"metrics": {"k": {"m": NaN}}}',
        '{"metrics": {"k": {"m": true}}}',
        "[" * 10**5,
    ],
    ids=["torn", "list", "empty", "no kernels", "no metrics", "text", "infinite", "NaN", "truth", "nested"],
)
def test_a_file_that_is_no_profile_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(load.BadInput, match=r"profile\.json"):
        prompt_metrics.read_profile(file)


def written(folder: Path, **facts: object) -> Path:
    file = folder / "told.json"
    file.write_text(json.dumps({"metrics": PROFILE, **facts}))
    return file


def at_81(profile: Path, name: str = "rtx4090", stage: str = "grid") -> str:
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    chosen, card = stages.load_stage(stage), load_card(name)
    return prompt.page(problem, solution, chosen, card, shapes=["kernelbench/81"], profile=profile)


def test_a_profile_that_names_neither_card_nor_problem_is_kept_and_that_is_said(tmp_path: Path) -> None:
    text = at_81(written(tmp_path), "h200")
    assert "the file does not tell card, problem, solution, shape, arithmetic.\n" in text
    assert '"launch__grid_size": 50721' in text


def test_the_page_says_whose_numbers_a_profile_has(tmp_path: Path) -> None:
    # as `profile -o` writes it
    facts = {
        "device": "NVIDIA H200",
        "card": "h200",
        "problem": "convtranspose2d",
        "solution": "phase_gemm",
        "shape": "kernelbench/57",
        "dtype": "fp32",
        "math": "tf32",
    }
    told = (
        "Measured: card h200, problem convtranspose2d, solution phase_gemm (not of this page), "
        "shape kernelbench/57 (not of this page), arithmetic tf32.\n"
    )
    assert told in at_81(written(tmp_path, **facts), "h200")
    assert "arithmetic bf16 (not of this page)" in at_81(written(tmp_path, dtype="bf16", math="tf32"))


@pytest.mark.parametrize(
    "facts", [{"device": "NVIDIA H200"}, {"device": "NVIDIA GeForce RTX 4090 Laptop GPU"}]
)
def test_a_profile_of_another_device_is_refused(tmp_path: Path, facts: dict[str, str]) -> None:
    with pytest.raises(load.BadInput, match="not 'rtx4090'"):
        at_81(written(tmp_path, **facts))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dram__throughputs.avg.pct_of_peak_sustained_elapsed", "did you mean dram__throughput?"),
        ("speed", "ncu --query-metrics --chip ad102"),
        (DEAD, "no metric of the ad102"),
    ],
)
def test_a_metric_that_no_list_has_is_refused(tmp_path: Path, name: str, words: str) -> None:
    file = written(tmp_path, metrics={"kernel": {name: 1.0}})
    with pytest.raises(load.BadInput, match=name.partition(".")[0]) as caught:
        at_81(file)
    (line,) = str(caught.value).splitlines()
    assert words in line


@pytest.mark.parametrize("name", card_names())
def test_the_metrics_of_every_stage_are_on_each_cards_list(tmp_path: Path, name: str) -> None:
    asked = {one.name: 1.0 for stage in stages.stage_names() for one in stages.load_stage(stage).metrics}
    profile = prompt_metrics.read_profile(written(tmp_path, metrics={"kernel": asked}))
    prompt_metrics.require_fit(profile, load.find_problem("convtranspose2d"), load_card(name))


@pytest.mark.parametrize(
    ("options", "marks"),
    [
        ((), ("tf32: fp32 tensors", "in fp32; no faster than", "us here in tf32, by")),
        (("--dtype", "fp16"), ("fp16: fp16 tensors", "423.9 MB in fp16", "us here in fp16, by")),
        (("--math", "fp32"), ("fp32: fp32 tensors", "us here in fp32, by")),
        (("--dtype", "fp16,bf16"), ("us here in fp16, by", "us here in bf16, by")),
    ],
)
def test_the_page_speaks_of_the_arithmetic_that_is_asked_for(
    options: tuple[str, ...], marks: tuple[str, ...]
) -> None:
    text = page("grid", "--shapes", "kernelbench/81", *options)
    assert [mark for mark in marks if mark not in text] == []
    workload = text.partition("[WORKLOAD]")[2].partition("[CURRENT CODE]")[0]
    assert workload.count("us here in") == sum("us here in" in mark for mark in marks)


def test_a_prediction_is_of_the_arithmetic_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*of: object) -> tuple[prompt_metrics.Kernels, list[str], list[str]]:
        asked.append(of[2])
        return {}, [], []

    asked: list[object] = []
    monkeypatch.setattr(prompt_metrics, "predict", predict)
    problem = load.find_problem("convtranspose2d")
    solution = load.find_solution("gather_gemm", problem.name)
    card, stage = load_card("rtx4090"), stages.load_stage("grid")
    prompt.page(problem, solution, stage, card, shapes=["kernelbench/81"], dtypes=["bf16"], predict_s=1)
    (cell,) = asked
    assert isinstance(cell, Cell)
    assert cell.arithmetic == "bf16"


def test_an_arithmetic_that_the_code_does_not_declare_is_told(tmp_path: Path) -> None:
    file = tmp_path / "narrow.py"
    file.write_text('"""Technique."""\nMATH = ("tf32",)\nDTYPES = ("fp32", "bf16")\nclass ModelNew: ...\n')
    for dtype, math, declared in (
        *(("fp32", "tf32", True), ("fp32", "fp32", False)),
        *(("bf16", "tf32", True), ("fp16", "tf32", False)),
    ):
        text = prompt.page(
            load.find_problem("convtranspose2d"),
            load.find_solution(str(file), "convtranspose2d"),
            stages.load_stage("grid"),
            load_card("rtx4090"),
            dtypes=[dtype],
            maths=[math],
        )
        assert ("which the code below does not declare" in text) is not declared


def test_the_tolerance_is_the_judges() -> None:
    body = ast.parse((ROOT / "runner/judge/check.py").read_text()).body  # not imported: torch takes seconds
    assigned = (node for node in body if isinstance(node, ast.Assign))
    factors = {ast.unparse(node.targets[0]): ast.unparse(node.value) for node in assigned}
    assert f"may be {float(factors['NORMWISE_FACTOR']):g} times" in prompt.TOLERANCE
    assert f"largest error {float(factors['ELEMENTWISE_FACTOR']):g} times" in prompt.TOLERANCE


def test_the_page_names_the_rules_that_its_own_code_breaks(modelled: str, tmp_path: Path) -> None:
    told = modelled.partition("This code breaks rules of this page")[2].partition("[NCU")[0]
    assert "- line 15: " in told
    source = (ROOT / "solutions/convtranspose2d/gather_gemm.py").read_text()
    assert source.splitlines()[14].startswith("BLOCK_M, BLOCK_N, BLOCK_K =")
    assert "[nothing-else]" in told
    assert "[grid-rank]" in told
    file = tmp_path / "kept.py"
    file.write_text(GOOD)
    assert "This code keeps all rules of this page." in page("grid", solution=str(file))
    file.write_text("BLOCK = 1\nBLOCK = 2\ndef broken(:\n")
    assert "- line 3: " in page("grid", solution=str(file))


def fed_back(folder: Path, reply: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Judge a reply, and return what the next page says of it."""
    file = folder / "reply.md"
    file.write_text(f"```python\n{reply}```\n")
    cli.main(["prompt", "--answer", str(file)])
    feedback = folder / "feedback.json"
    feedback.write_text(capsys.readouterr().out)
    return next_page(feedback)


def next_page(feedback: Path) -> str:
    text = page("grid", "--feedback", feedback)
    return text.partition("[WHAT FAILED LAST TIME]\n")[2].partition("\n\n**Task**")[0]


def test_feedback_on_an_answer_names_the_broken_rules_on_the_next_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fed_back(tmp_path, GOOD + "BLOCK = 1\nOTHER = 2\n", capsys)
    first = len(GOOD.splitlines()) + 1
    assert said.splitlines() == [
        "The last answer to this page: its text was refused, it was not run.",
        f"- lines {first}, {first + 1}: neither an import, a kernel, a wrapper nor ModelNew [nothing-else]",
    ]
    said = fed_back(tmp_path, GOOD, capsys)
    assert said == "The last answer to this page: its text was not refused, it was not run."


def test_feedback_on_an_answer_names_the_failed_shapes_on_the_next_page(tmp_path: Path) -> None:
    cell = replace(CELL, shape={"batch": 2, "kernel_size": (3, 5)})
    wrong = [
        a_failure("kernelbench/81", "row 3\ndiffers", cell=replace(cell, label=label))
        for label in ("57", "81")
    ]
    right = replace(wrong[0], status=Status.PASS, failed=None)
    told = failures.Feedback(refused=False, findings=(), correctness=answer.correctness([right, *wrong]))
    file = tmp_path / "feedback.json"
    file.write_text(json.dumps(asdict(told)))
    assert next_page(file).splitlines() == [
        "The last answer to this page: its text was not refused, 1 of 3 cells passed.",
        "- kernelbench/57 tf32 and 1 more: WRONG: row 3 differs",
        "    batch=2 kernel_size=(3, 5)",
    ]


def test_reasons_that_find_no_room_on_the_page_are_counted(tmp_path: Path) -> None:
    failed = [a_failure(f"kernelbench/{number}", f"reason {number}") for number in range(7)]
    told = failures.Feedback(refused=False, findings=(), correctness=answer.correctness(failed))
    file = tmp_path / "feedback.json"
    file.write_text(json.dumps(asdict(told)))
    assert next_page(file).splitlines()[-1] == "- and 2 other reasons"

    path = record.results_path(tmp_path, "cpu", "convtranspose2d", "gather_gemm")
    for one in failed[1:]:
        record.append(path, one)
    assert "\n- and 1 other reason\n" in page("grid", "--results", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"refused": 1, "findings": []}', '{"refused": true, "findings": [{"line": 1}]}'),
        '{"refused": false, "findings": [], "correctness": {"cells": 1}}',
        "[" * 10**5,
    ],
)
def test_a_file_that_is_no_feedback_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "feedback.json"
    file.write_text(text)
    with pytest.raises(
        load.BadInput, match=r"feedback\.json' is not what `prompt --answer` prints"
    ) as caught:
        failures.read_feedback(file)
    assert len(str(caught.value).splitlines()) == 1


CODE = """import torch
import torch.nn as nn
import triton
import triton.language as tl

@triton.jit
def kernel(x):
    tl.store(x + tl.program_id(0), 0)
"""
MODEL = """
class ModelNew(nn.Module):
    def forward(self, x):
        kernel[(1,)](x)
"""
GOOD = CODE + MODEL


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("First:\n```\na\n```\nBetter:\n```py\nb\n\nc\n```\nDone.", "b\n\nc\n"),
        ("~~~python\na\n```\n~~~", "a\n```\n"),
        ("````python\n```\na\n```\n````", "```\na\n```\n"),
        ("```python\r\na\r\n```\r\n", "a\r\n"),
        ("```python title=x\na\n```", "a\n"),
        ("Use ```inline``` code:\n```\na\n```", "a\n"),
        ("```python\na\n```\nCheck it:\n```bash\nmake\n```", "a\n"),
        ("```\na\n```\n```bash\nmake\n```\n```text\nfast\n```", "a\n"),
        ("```cuda\na\n```\n```c++\nb\n```", "b\n"),
        ("```py\nclass ModelNew: 0\n```\nUse it:\n```py\nModelNew()\n```", "class ModelNew: 0\n"),
        ("```py\nclass ModelNew: 0\n```\n```py\nclass ModelNew: 1\n```", "class ModelNew: 1\n"),
        ("```py\na\n```\n```text\nclass ModelNew: 0\n```", "a\n"),
        ("```python\n```", ""),
        ("```\ngrid\n```\n```python:a.py\nclass ModelNew: 0\n```", "class ModelNew: 0\n"),
        ("```{.python}\nclass ModelNew: 0\n```\n```\nfast\n```", "class ModelNew: 0\n"),
        ("```python,linenos\nclass ModelNew: 0\n```\n```\nfast\n```", "class ModelNew: 0\n"),
        ("```py\nclass ModelNew: 0\n```\nDone.\n```\n", "class ModelNew: 0\n"),
        ("```py\nclass ModelNew: 0\n```\n```py\nclass ModelNew: 1", None),
        ("````markdown\nHere:\n```py\na\n```\n````", "a\n"),
        ("```markdown\nNo code.\n```", "No code.\n"),
        ("1. Here:\n\n   ```py\n   if a:\n       b\n\n   ```\n", "if a:\n    b\n\n"),
        ("10. Here:\n    ```py\n    a\n    ```\n11. Done.", "a\n"),
        ("- Here:\n\t```py\n\ta\n\t```\n", "a\n"),
        (
            '```py\n"""Use it:\n    ```\n    a\n    ```\n"""\n```',
            '"""Use it:\n    ```\n    a\n    ```\n"""\n',
        ),
        ("no block", None),
        ("```python\na\n```\n```python\nb", None),
        ("", None),
    ],
)
def test_the_last_fenced_block_is_taken(reply: str, code: str | None) -> None:
    assert answer.last_block(reply) == code


@pytest.mark.parametrize(
    ("reply", "rules", "refused"),
    [
        (f"Here.\n```python\n{CODE}{MODEL}```\n", {"no-technique"}, False),
        (f"```python\n{CODE}{MODEL}BLOCK = 1\n```", {"no-technique", "nothing-else"}, True),
        (f"```python\n{CODE}```", {"no-technique", "no-model", "grid-rank"}, True),
        (f"```python\n{CODE.partition('@')[0]}{MODEL}```", {"no-technique", "has-kernel"}, True),
        ("```python\ndef f(:\n```", {"syntax"}, True),
        (f"{CODE}{MODEL}", {"no-block"}, True),
    ],
)
def test_a_reply_is_judged_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: str, rules: set[str], refused: bool
) -> None:
    file = tmp_path / "reply.md"
    file.write_text(reply)
    assert cli.main(["prompt", "--answer", str(file)]) == (exits.EXIT_FAILED if refused else exits.EXIT_DONE)
    said = json.loads(capsys.readouterr().out)
    assert said["refused"] is refused
    assert {finding["rule"] for finding in said["findings"]} == rules
    assert all(set(one) == {"line", "rule", "severity", "message"} for one in said["findings"])


IDLE = """
def launch(x):
    kernel[(1,)](x)

class ModelNew(nn.Module):
    def __init__(self, ins, outs, kernel, stride=1, padding=0, dilation=1, bias=False, extra=0, groups=1):
        super().__init__()
        self.layer = nn.ConvTranspose2d(ins, outs, kernel, stride, padding, extra, groups, bias, dilation)

    def forward(self, x):
        launch
        return torch.nn.Sequential(self.layer)(x)
"""


@pytest.mark.parametrize("command", ["prompt", "check"])
def test_a_kernel_that_is_named_and_never_launched_is_found_by_running(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reply.py"
    text = f"{CODE}{IDLE}"
    words = ["prompt", "--answer", str(file)]
    if command == "check":
        words = ["check", str(file), "--rules", "owner", "--dtype", "fp32", "--math", "tf32"]
    file.write_text(text if command == "check" else f"```python\n{text}```\n")
    cell = ["--problem", "convtranspose2d", "--shapes", "smoke/sparse", "--device", "cpu"]
    assert cli.main([*words, *cell]) == exits.EXIT_FAILED
    said = capsys.readouterr().out
    assert "no kernel was launched in smoke/sparse tf32, right as it is" in said
    if command == "prompt":
        told = json.loads(said)
        assert (told["refused"], told["correctness"]["passed"], told["source"]) == (True, 1, text)
        assert told["findings"][-1]["line"] == text[: text.index("class ModelNew")].count("\n") + 1


def test_the_page_names_the_rules_that_findings_name(modelled: str) -> None:
    for rule in OUTPUT_RULES:
        assert f"[{rule.name}]" in modelled
    elsewhere = {rule.name for rule in OUTPUT_RULES if rule.check is None}
    source = "import torch\ndef f(x):\n    return torch.matmul(x, x)\n"
    assert elsewhere <= {finding.rule for finding in lint.lint(source)}


def test_neither_command_loads_torch() -> None:
    code = f"""
import sys
from runner import cli
cli.main(["leaderboard"])
cli.main("prompt --problem convtranspose2d --solution gather_gemm --stage grid --no-run".split())
cli.main(["prompt", "--answer", {str(ROOT / "README.md")!r}])
print("loaded:", {{"torch", "triton"}} & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60)
    assert said.stdout.endswith("loaded: set()\n")


if __name__ == "__main__":
    SNAPSHOT.write_text(f"{owners_page()}\n")
