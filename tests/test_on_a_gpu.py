"""The run of everything that needs a GPU, and its benchmarks, as far as they go without one: on the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import choices  # noqa: E402  benchmarks/ is no package
import gpu_compile  # noqa: E402
import gpu_measure  # noqa: E402
import gpu_peers  # noqa: E402
import on_a_gpu  # noqa: E402
import report_gpu  # noqa: E402
from gpu_device import Card, Host, Place, cold, peaks, sample  # noqa: E402
from gpu_measure import TooLargeError, costs, fit, measure  # noqa: E402
from parts import Part, allotted, run_part, run_stages  # noqa: E402
from peers import Effort, WrongResultError  # noqa: E402
from records import DEVICE_LOST, Records, collected  # noqa: E402

from fastbp.measure import Network  # noqa: E402

ON_NUMPY = Host(Place("numpy", "numpy", "cpu", "cpu"))  # compiles nothing
BRIEF = Effort(run=1e-4, pause=0.0, budget=0.0, fewest=2, most=2)
SMALL = Network("9-6-5-3", (9, 6, 5, 3), 7, "gelu", "softmax", "cross_entropy")
RECORDS = f"import os, sys; sys.path.append({str(BENCHMARKS)!r})\nfrom records import *\nfrom pathlib import Path\n"
RECORDS += "r = Records(Path(os.environ[ENV]))\n"


def python(code, name="part", **more):
    return Part(name, (sys.executable, "-c", RECORDS + code), **{"share": 30.0, "least": 0.0, **more})


def states(outcome):
    return {i["item"]: i["state"] for i in outcome.items}


# ---- records ---------------------------------------------------------------------------------------------------------


def test_records_survive_what_writes_them(tmp_path):
    path = tmp_path / "records"
    first = Records(path)
    first.begin("a")
    first.end("a", "done", error=float("inf"), count=np.int64(3), us={"x": np.float32(0.5)})
    first.begin("b")
    with open(path, "a") as file:
        file.write('{"item": "c", "sta')
    found = collected(path, "killed")
    assert found == [
        {"item": "a", "state": "done", "error": "inf", "count": 3, "us": {"x": 0.5}},
        {"item": "b", "state": "lost", "why": "killed"},
    ]
    assert Records(path).before == {"a", "b"}


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_a_part_that_is_killed_goes_on_behind_what_killed_it(tmp_path):
    code = """
for name in "abcde":
    if name in r.before: continue
    r.begin(name)
    if name == "b": os.kill(os.getpid(), 11)
    if name == "d": sys.exit(DEVICE_LOST)
    r.end(name, "done")
"""
    outcome = run_part(python(code), tmp_path, 30.0)
    assert states(outcome) == {"a": "done", "b": "lost", "c": "done", "d": "lost", "e": "done"}
    assert (outcome.state, outcome.starts) == ("done", 3)
    why = {i["item"]: i["why"] for i in outcome.items if i["state"] == "lost"}
    assert why == {"b": "ended by signal 11", "d": f"exit status {DEVICE_LOST}"}


def test_a_part_that_hangs_goes_on_behind_what_hung(tmp_path):
    code = """
import time
for name in "ab":
    if name in r.before: continue
    r.begin(name)
    if name == "a": time.sleep(60)
    r.end(name, "done")
"""
    outcome = run_part(python(code, silence=1.0), tmp_path, 30.0)
    assert states(outcome) == {"a": "lost", "b": "done"}
    assert outcome.items[0]["why"] == "no news for 1 s"
    assert outcome.seconds < 15


def test_a_part_that_gets_nowhere_is_not_started_for_ever(tmp_path):
    outcome = run_part(python("os.kill(os.getpid(), 9)"), tmp_path, 30.0)
    assert (outcome.state, outcome.starts, outcome.why) == ("failed", 1, "ended by signal 9")
    outcome = run_part(python("r.begin('a'); print('said'); raise SystemExit(1)"), tmp_path, 30.0)
    assert (outcome.state, outcome.starts, outcome.why) == ("failed", 1, "exit status 1")
    assert "said" in outcome.output
    outcome = run_part(python("r.begin('again'); os.kill(os.getpid(), 9)"), tmp_path, 30.0)
    assert (outcome.state, outcome.starts) == ("failed", 2)


def test_time_that_ends(tmp_path):
    code = "import time\nr.end('left', 'done', seconds=float(os.environ[SECONDS]))\nr.begin('long')\ntime.sleep(60)"
    began = time.monotonic()
    outcome = run_part(python(code), tmp_path, 2.0)
    assert time.monotonic() - began < 15
    assert outcome.state == "out of time"
    assert states(outcome) == {"left": "done", "long": "skipped"}
    assert 0 < outcome.items[0]["seconds"] <= 2.0


def test_time_that_is_left_over_goes_to_all_stages_that_are_left():
    assert allotted([60.0, 90.0, 30.0], 180.0) == 60.0
    assert allotted([60.0, 90.0, 30.0], 360.0) == 120.0
    assert allotted([90.0, 30.0], 160.0) == 120.0  # the first needed 20 of its 60
    assert allotted([90.0, 30.0], 100.0) == 90.0  # it needed 80: the last goes short
    assert allotted([90.0, 30.0], 50.0) == 50.0
    assert allotted([0.0, 30.0], 50.0) == 0.0  # cannot run here
    assert allotted([0.0], 50.0) == 0.0


def test_what_cannot_run_takes_no_time(tmp_path):
    code = "r.end('left', 'done', seconds=float(os.environ[SECONDS]))"
    plan = [[python(code, "first")], [python("", "absent", why_not="not installed")], [python(code, "last")]]
    first, _, last = run_stages(plan, tmp_path, 90.0, lambda _: None)
    assert 44.0 < first.items[0]["seconds"] <= 45.0
    assert 80.0 < last.items[0]["seconds"] <= 90.0


def test_stages_follow_each_other_and_parts_go_side_by_side(tmp_path):
    meet = """
import time
folder = Path(os.environ[ENV]).parent
(folder / sys.argv[1]).touch()
end = time.monotonic() + 20
while not (folder / sys.argv[2]).exists() and time.monotonic() < end: time.sleep(0.01)
r.end("met", "done" if (folder / sys.argv[2]).exists() else "failed")
"""
    pair = [
        Part(name, (sys.executable, "-c", RECORDS + meet, name, other), 30.0, 0.0)
        for name, other in (("one", "two"), ("two", "one"))
    ]
    late = python("", "late", least=1e6)
    absent = python("", "absent", why_not="not installed")
    seen = []
    found = run_stages([pair, [late], [absent]], tmp_path, 60.0, lambda o: seen.append(o.name))
    assert [states(o) for o in found[:2]] == [{"met": "done"}] * 2
    assert [(o.state, o.starts) for o in found[2:]] == [("skipped", 0)] * 2
    assert found[2].why.startswith("no time: ")
    assert found[3].why == "not installed"
    assert set(seen[:2]) == {"one", "two"}
    assert seen[2:] == ["late", "absent"]


def test_pytest_keeps_records_and_is_started_again(tmp_path):
    (tmp_path / "test_some.py").write_text(
        """
import os, sys, types
import pytest

def test_right(record_property):
    record_property("error", 1e-7)

def test_wrong():
    assert 1 == 2

@pytest.mark.skip(reason="no second device")
def test_left_out(): ...

def test_ends_the_process():
    os._exit(9)

class Stream:
    def synchronize(self): raise RuntimeError("illegal address")

def test_loses_the_device():
    sys.modules["cupy"] = types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=Stream))
    assert False, "garbage"

def test_after_it(): ...
"""
    )
    options = ("-q", "-p", "pytest_records", "-p", "no:cacheprovider", "-p", "no:randomly", "--rootdir", str(tmp_path))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(ROOT)])}
    command = ("env", f"PYTHONPATH={environment['PYTHONPATH']}", sys.executable, "-m", "pytest", *options)
    part = Part("tests", (*command, str(tmp_path / "test_some.py")), 60.0, 0.0, fine=(0, 1, 5))
    outcome = run_part(part, tmp_path, 60.0)
    found = {i["item"].split("::")[-1]: i for i in outcome.items}
    assert {name: i["state"] for name, i in found.items()} == {
        "test_right": "passed",
        "test_wrong": "failed",
        "test_left_out": "skipped",
        "test_ends_the_process": "lost",
        "test_loses_the_device": "failed",
        "test_after_it": "passed",
    }, outcome.output
    assert found["test_right"]["error"] == 1e-7
    assert "1 == 2" in found["test_wrong"]["why"]
    assert found["test_left_out"]["why"].endswith("no second device")
    assert (outcome.state, outcome.starts) == ("done", 3)


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_without_a_card_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test-gpu"])
    assert on_a_gpu.main(lambda: "no NVIDIA driver: there is no GPU") == on_a_gpu.NO_CARD
    assert "cannot run here: no NVIDIA driver: there is no GPU" in capsys.readouterr().err


def test_the_script_finds_the_checkout():
    done = subprocess.run(
        [ROOT / "scripts" / "test-gpu", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": ""},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert "--minutes" in done.stdout


def test_only_what_a_stock_image_has_is_imported():
    """numba, numba-cuda, CuPy, PyTorch, pytest: what else is there on this machine must not be needed."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {{"hypothesis", "xdist", "rich", "click", "jax", "greenlet", "matplotlib", "sklearn",
                "scipy", "mpmath", "threadpoolctl", "array_api_strict", "torch"}}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Missing())
sys.path += [{str(BENCHMARKS)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "cuda")!r}]
import on_a_gpu, gpu_compile, gpu_measure, gpu_small, pytest_records, conftest
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_all_parts_are_known_to_the_report():
    plan = on_a_gpu.stages()
    names = [part.name for stage in plan for part in stage]
    assert len(set(names)) == len(names)
    assert set(report_gpu.CORRECT) < set(names)
    assert set(gpu_measure.PARTS) < set(names)
    assert names[:5] == ["keeping", "kernels", "training", "timings", "goal"]  # in order of importance
    assert sum(max(part.share for part in stage) for stage in plan) < 480
    assert all(part.share >= part.least for stage in plan for part in stage)
    for part in (p for stage in plan for p in stage):
        assert all(Path(word).exists() for word in part.command if word.endswith(".py"))


@pytest.mark.parametrize(
    ("log", "state", "errors"),
    [
        ("========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n", "passed", 0),
        ("========= Invalid __global__ write\n========= ERROR SUMMARY: 3 errors\n", "failed", 3),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed", 0),
        ("========= RACECHECK SUMMARY: 5 hazards displayed (2 errors, 3 warnings)\n", "failed", 2),
        ("Segmentation fault\n", "failed", None),
    ],
)
def test_what_the_checkers_say(log, state, errors):
    found = on_a_gpu.verdict("memcheck", log)
    assert found["state"] == state
    assert found.get("errors") == errors


def test_what_a_checker_found_is_told_without_the_calls_that_led_there():
    log = "".join(
        f"========= {line}\n"
        for line in ("Invalid write", "    at kernel", "    Saved host backtrace up to", "        Host Frame: x", "")
    )
    assert (
        on_a_gpu.verdict("memcheck", f"{log * 30}========= ERROR SUMMARY: 30 errors\n")["why"].count("at kernel") == 20
    )


def fabricated():
    """A run of two networks, whose figures are easy to check: peaks of 1 TFLOP/s and 1 GB/s."""
    timing = {"spread": 0.1, "rounds": 3, "way": "way 1", "first_s": 1.0, "error": 1e-6, "exact_network": True}

    def fitted(name, group, operations, bytes_, **us):
        timings = {peer.replace("_", " "): {"us": value, **timing} for peer, value in us.items()}
        return {
            "item": f"fit {name} highest {group}", "state": "done", "network": name, "layers": [2, 1], "batch": 8,
            "precision": "highest", "operations": operations, "bytes": bytes_, "timings": timings,
            "left_out": {"JAX, scan": "jax is not there"},
        }  # fmt: skip

    def cost(forward, gradient):
        def one(us):
            return {"us": us, "spread": 0.0, "repeats": 5}

        return {
            "forward": one(forward),
            "gradient": one(gradient),
            "error": 1e-6,
            "ratio": (gradient - forward) / forward,
        }

    timings = [
        {"item": "peaks", "state": "done", "highest": 1e12, "tf32": 4e12, "bandwidth": 1e9, "seconds": 1.5},
        fitted("a", "torch", 5e7, 1e4, fastbp=100.0, PyTorch=300.0, CuPy=900.0),
        fitted("b", "torch", 1e6, 4e4, fastbp=80.0, PyTorch=40.0),
        {
            "item": "costs a highest torch", "state": "done", "network": "a", "layers": [2, 1], "batch": 8,
            "precision": "highest", "operations": {"forward": 2e7, "gradient": 5e7},
            "bytes": {"forward": 1e3, "gradient": 2e3}, "ratio_products": 1.5,
            "costs": {"fastbp": cost(40.0, 100.0), "PyTorch": cost(50.0, 150.0)}, "left_out": {},
        },
    ]  # fmt: skip
    jax = [fitted("a", "jax", 5e7, 1e4, fastbp=110.0, JAX=220.0)]
    tests = [
        {"item": "t1", "state": "passed", "case": "x|y", "dtype": "float32", "error": 1e-7, "bound": 1e-6},
        {"item": "t2", "state": "skipped", "why": "one GPU"},
    ]
    sweeps = [
        {
            "item": "tiles highest", "state": "done", "constant": "LARGE_TILES", "precision": "highest", "now": 100,
            "best": 64, "loss": 0.01, "loss_now": 0.05,
            "shapes": {"1x1x1": {"tiles": 1, "us": {"small": 1.0, "large": 2.0}, "best": "small"}},
        },
        {"item": "launches", "state": "done", "launch_us": 2.0, "launch_host_us": 4.0},
    ]  # fmt: skip

    def part(name, items, state="done", why=""):
        return {"name": name, "state": state, "seconds": 1.0, "starts": 1, "why": why, "output": "", "items": items}

    machine = {"card": "none", "driver": "none", "python": "3", "versions": {"fastbp": "0"}, "date": "2026-01-01"}
    parts = [part("kernels", tests), part("timings", timings), part("jax", jax), part("sweeps", sweeps)]
    parts.append(part("memcheck", [], "skipped", "no compute-sanitizer"))
    return {"machine": machine, "minutes": 8, "parts": parts}


def test_figures_of_the_report():
    run = fabricated()
    first, second = report_gpu.steps(run)
    assert first.us == {"fastbp": 100.0, "PyTorch": 300.0, "CuPy": 900.0, "JAX": 220.0}
    assert first.ratio == {"PyTorch": 3.0, "CuPy": 9.0, "JAX": 2.0}  # JAX by the fastbp beside it
    assert first.best == "JAX"
    assert (first.floor, first.bound) == (50.0, "operations")
    assert (second.floor, second.bound, second.best) == (40.0, "bytes", "PyTorch")
    assert "| a, 8 | highest | 300 | 900 | **220** | 100 | 2.00 | 50.0 | operations | 50 |" in report_gpu.steps_table(
        run
    )
    costs_row = report_gpu.costs_table(run).splitlines()[-1]
    assert costs_row == "| a, 8 | highest | 40.0 | 20.0 | 60.0 | 30.0 | 1.50 | 1.50 | PyTorch | 1.50 |"
    assert "| LARGE_TILES | highest | 100 | 64 | 1.0% | 5.0% |" in report_gpu.constants_table(run)
    text = report_gpu.whole(run)
    assert "Nothing was found wrong." in text
    assert "| x¦y | float32 |  | 1.0e-07 | 1.0e-06 | yes |" in text
    for line in ("- memcheck: no compute-sanitizer", "- t2: skipped: one GPU", "- JAX, scan: jax is not there"):
        assert line in text


def test_goals_are_judged_by_the_fastest_that_they_name():
    def step(network, precision, **ratio):
        timings = {name: {"us": us} for name, us in {"fastbp": 1.0, **ratio}.items()}
        found = {"item": f"fit {network} {precision}", "state": "done", "network": network, "precision": precision}
        return {**found, "batch": 8, "operations": 1.0, "bytes": 1.0, "timings": timings, "left_out": {}}

    def judged(**parts):
        run = {"parts": [{"name": name, "items": items} for name, items in parts.items()]}
        return [line.rpartition(": ")[2] for line in report_gpu.goals(run).splitlines()]

    assert judged() == ["not measured."] * 3
    names = ("2-4-1", "784-30-10", "64-64-64-10", "784-128-10")
    small = [step(name, "highest", **{"PyTorch": 30.0, "PyTorch, graph": 6.0}) for name in names]
    wide = [step("4096x4", p, **{"PyTorch": 1.02, "PyTorch, graph": 1.25}) for p in ("highest", "bf16")]
    compiled = [step("64x4", "bf16", **{"torch.compile": 4.0, "torch.compile, graph": 2.5})]
    assert judged(timings=small[:2] + wide, goal=compiled) == [
        "reached as far as it was measured (2-4-1 highest 6, 784-30-10 highest 6, 64-64-64-10 highest not measured, "
        "784-128-10 highest not measured).",
        "missed (64x4 bf16 2.5).",
        "reached as far as it was measured (4096x4 highest 1.02, 4096x4 tf32 not measured, 4096x4 bf16 1.02).",
    ]
    wide.append(step("4096x4", "tf32", PyTorch=0.99))
    small[3]["timings"]["PyTorch, graph"]["us"] = 5.0
    first, _, last = judged(timings=small + wide)
    assert first.startswith("reached (2-4-1 highest 6, ")
    assert last.startswith("missed (4096x4 highest 1.02, 4096x4 tf32 0.99, ")
    assert "## Goals\n\n- A step of a small network" in report_gpu.whole(fabricated())


def test_a_report_without_peaks_or_timings():
    run = fabricated()
    run["parts"][1]["items"] = run["parts"][1]["items"][1:]
    assert "| a, 8 | highest | 300 | 900 | **220** | 100 | 2.00 | – | – | – |" in report_gpu.steps_table(run)
    run["parts"] = []
    assert report_gpu.whole(run)


@pytest.mark.parametrize("state", ["failed", "lost"])
def test_what_is_wrong(state):
    run = fabricated()
    assert report_gpu.wrong(run) == []
    run["parts"][0]["items"][0]["state"] = state
    assert report_gpu.wrong(run) == [f"kernels: t1 {state}", "kernels: nothing was tested"]
    run = fabricated()
    run["parts"][0] |= {"state": "out of time", "why": "no time"}
    run["parts"][4] |= {"state": "out of time"}
    assert report_gpu.wrong(run) == ["kernels: out of time: no time"]
    run = fabricated()
    run["parts"][1]["items"][1] |= {"state": "failed", "why": "WrongResultError: PyTorch is off"}
    assert report_gpu.wrong(run) == ["fit a highest torch: WrongResultError: PyTorch is off"]


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert report_gpu.draw(fabricated(), tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert not report_gpu.draw({**fabricated(), "parts": []}, tmp_path / "none.png")


def test_a_run_is_on_disk_after_every_part(tmp_path, capsys):
    """One part looks at what the one before left; the exit status says whether anything was wrong."""
    look = f"found = json.loads(Path({str(tmp_path / 'gpu.json')!r}).read_text())['parts']\n"
    look += "r.end('saw', 'passed' if [p['name'] for p in found] == ['kernels'] else 'failed')"
    plan = [[python("r.end('t', 'passed')", "kernels")], [python(look, "training")]]
    assert on_a_gpu.run(plan, tmp_path, 1.0) == 0
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert [(p["name"], p["items"][0]["state"]) for p in written["parts"]] == [
        ("kernels", "passed"),
        ("training", "passed"),
    ]
    assert (tmp_path / "gpu.md").read_text().startswith("# fastbp on ")
    assert on_a_gpu.run([[python("r.begin('t'); os.kill(os.getpid(), 11)", "kernels")]], tmp_path, 1.0) == 1
    assert "WRONG:\nkernels: t lost" in capsys.readouterr().out


def test_what_cannot_be_shown_or_started_loses_nothing(tmp_path, monkeypatch, capsys):
    def broken(run):
        raise KeyError("us")

    monkeypatch.setattr(report_gpu, "steps_table", broken)
    plan = [[Part("gone", (str(tmp_path / "gone"),), 30.0, 0.0)], [python("r.end('t', 'passed')", "kernels")]]
    assert on_a_gpu.run(plan, tmp_path, 1.0) == 0
    gone, kernels = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert gone["why"].startswith("FileNotFoundError")
    assert kernels["items"][0]["state"] == "passed"
    assert "KeyError: 'us'" in (tmp_path / "gpu.md").read_text()
    assert "This cannot be shown" in capsys.readouterr().out


# ---- kernels kept on disk --------------------------------------------------------------------------------------------


def test_long_compilations_begin_first():
    table = {"float32": ["move", "chain", "blocks", "blocks_bf16"], "float64": ["move", "chain", "blocks"]}
    found = [f"{name} {dtype[-2:]}" for dtype, name in gpu_compile.in_order(table)]
    assert found == ["blocks_bf16 32", "blocks 64", "blocks 32", "chain 64", "chain 32", "move 64", "move 32"]


def test_a_kernel_that_cannot_be_compiled_leaves_the_others_alone(tmp_path, monkeypatch, two_threads):
    codes = {
        "slow": "import time; time.sleep(60)",
        "wrong": "raise SystemExit('ptxas fatal')",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "right": "",
        "before": "raise SystemExit('again')",
    }
    monkeypatch.setattr(gpu_compile, "MOST_SECONDS", 2.0)
    Records(tmp_path / "records").end("float32 before", "done")
    kernels = [("float32", name) for name in codes]
    records = Records(tmp_path / "records")
    gpu_compile.compile_all(kernels, lambda k: (sys.executable, "-c", codes[k[1]]), records, time.monotonic() + 60)
    found = {i["item"].split()[1]: (i["state"], i.get("why")) for i in collected(tmp_path / "records")}
    assert found == {
        "slow": ("failed", "not compiled in 2 s"),
        "wrong": ("failed", "ptxas fatal"),
        "killed": ("failed", "exit status -9"),
        "right": ("done", None),
        "before": ("done", None),
    }
    gpu_compile.compile_all([("float64", "late")], lambda _: ("no",), records, time.monotonic())
    assert collected(tmp_path / "records")[-1] == {"item": "float64 late", "state": "skipped", "why": "no time"}


def test_what_was_compiled_is_loaded_by_launches(tmp_path):
    """On a device that is only said to be there: see tests/cuda/test_offline_keeping.py."""
    pytest.importorskip("cupy")
    pytest.importorskip("numba_cuda")
    code = f"""
import sys
from types import SimpleNamespace
from numba.cuda import codegen, dispatcher, types

device = SimpleNamespace(compute_capability=(9, 0), id=0)
dispatcher.get_current_device = lambda: device
codegen.devices = SimpleNamespace(get_context=lambda: SimpleNamespace(device=device))
dispatcher._Kernel.bind = lambda self: self._codelibrary.get_cubin(cc=(9, 0))

sys.path.append({str(BENCHMARKS)!r})
import gpu_compile
from fastbp.backends.cuda.launching import compiled

gpu_compile.compile_one("float32", "advance")
kernel = compiled("advance", "float32")
print(sum(kernel._cache_hits.values()), sum(kernel._cache_misses.values()))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for found in ("0 1", "1 0"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.stdout.strip() == found, done.stderr


# ---- what checkers look at -------------------------------------------------------------------------------------------


def test_checkers_see_every_way_of_training():
    """In Numba's simulator, by the kernels that are launched."""
    pytest.importorskip("numba_cuda")
    pytest.importorskip("greenlet")
    code = f"""
import sys
sys.path += [{str(BENCHMARKS)!r}, {str(ROOT / "tests")!r}]
import fake_cupy
from fastbp.backends.cuda.simulator import memory
sys.modules |= fake_cupy._modules()
fake_cupy._watch = memory
import gpu_small
from fastbp.backends.cuda import executable

launch = executable.launch
def noted(name, *more):
    seen.add(name)
    launch(name, *more)
executable.launch = noted
for way in gpu_small.WAYS:
    seen = set()
    gpu_small.fit(way, "float32", "highest", rows=2, batch=2)
    print(way, *seen, sep=", ")
"""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seen = {way: set(kernels) for way, *kernels in (line.split(", ") for line in done.stdout.splitlines())}
    assert seen["whole steps by one block"] == {"blocks"}
    assert seen["launches by graphs"] >= {"advance", "product_tiny", "down"}
    assert "blocks" not in seen["launches by graphs"]
    assert "combine" in seen["with cuBLAS"]
    assert not any(name.startswith("product") for name in seen["with cuBLAS"])


# ---- measurements ----------------------------------------------------------------------------------------------------


def test_one_failure_leaves_the_others_alone(tmp_path, monkeypatch):
    def fails():
        raise ValueError("no")

    def too_large():
        raise TooLargeError("it takes 3 GB")

    monkeypatch.setattr(gpu_measure, "device_lost", lambda: "")
    path = tmp_path / "records"
    Records(path).begin("before")
    work = {"before": fails, "a": lambda: {"us": 1.0}, "b": fails, "c": too_large, "d": lambda: {"us": 2.0}}
    measure(work, Records(path), time.monotonic() + 100, ON_NUMPY)
    found = {i["item"]: (i["state"], i.get("us"), i.get("why")) for i in collected(path)}
    assert found == {
        "before": ("lost", None, ""),
        "a": ("done", 1.0, None),
        "b": ("failed", None, "ValueError: no"),
        "c": ("skipped", None, "it takes 3 GB"),
        "d": ("done", 2.0, None),
    }
    measure({"late": fails}, Records(path), time.monotonic() + 1, ON_NUMPY)
    assert collected(path)[-1] == {"item": "late", "state": "skipped", "why": "no time"}
    monkeypatch.setattr(gpu_measure, "device_lost", lambda: "illegal address")
    with pytest.raises(SystemExit) as ended:
        measure({"e": fails, "f": dict}, Records(path), time.monotonic() + 100, ON_NUMPY)
    assert ended.value.code == DEVICE_LOST
    assert collected(path)[-1]["item"] == "e"


def test_what_is_measured_first():
    names = list(gpu_measure.items("timings", ON_NUMPY))
    assert names[0] == "peaks"
    assert names[1:5] == [f"fit {name} highest torch" for name in ("784-128-10", "4096x4", "64-64-64-10", "784-30-10")]
    assert {"fit 2-4-1 highest torch", "fit 4096x4 bf16 torch", "fit 4096x4 tf32 torch"} == set(names[5:8])
    assert names.index("costs 64x4 highest torch") < names.index("fit 64x4 bf16 torch")
    assert {n.split()[1] for n in names if n.startswith("fit ")} == set(gpu_peers.NAMES)
    assert {f"costs {name} highest torch" for name in ("2-4-1", "784-30-10", "64-64-64-10")} < set(names)
    assert not {"fit 2-4-1 bf16 torch", "fit 784-30-10 tf32 torch"} & set(names)
    assert list(gpu_measure.items("goal", ON_NUMPY)) == ["fit 64x4 bf16 compile"]
    compiled = gpu_measure.items("compile", ON_NUMPY)
    assert "fit 64x4 bf16 compile" not in compiled
    assert len(compiled) < len(gpu_measure.items("jax", ON_NUMPY))


@pytest.mark.parametrize(("group", "precision"), [("torch", "highest"), ("torch", "bf16"), ("jax", "bf16")])
def test_peers_give_the_same_results(group, precision, monkeypatch):
    """Parameters after the first steps, and gradients, as array code has them in float64."""
    pytest.importorskip(group)
    monkeypatch.setattr(gpu_peers, "DATA_BYTES", 3 * 4 * 7 * (9 + 3))  # three batches
    found = fit(SMALL, precision, group, ON_NUMPY, BRIEF)
    peers = {"torch": {"PyTorch"}, "jax": {"JAX, scan"}}[group]
    if group == "torch" and precision == "highest":
        peers.add("CuPy")
    assert set(found["timings"]) == {"fastbp", *peers}
    assert found["left_out"].keys() == ({"PyTorch, graph"} if group == "torch" else set())
    errors = {name: timing["error"] for name, timing in found["timings"].items()}
    assert errors["fastbp"] < 1e-4
    assert all((1e-4 < errors[name] < 0.1) if precision == "bf16" else errors[name] < 1e-4 for name in peers)
    costly = costs(SMALL, precision, group, ON_NUMPY, 0.0)
    assert set(costly["costs"]) == {"fastbp", *peers}
    for name, cost in costly["costs"].items():
        assert cost["error"] < (0.1 if precision == "bf16" and name != "fastbp" else 1e-5)
    assert costly["ratio_products"] == pytest.approx(2 - 9 * 6 / (9 * 6 + 6 * 5 + 5 * 3))
    assert costly["operations"]["gradient"] > 2 * costly["operations"]["forward"]


def test_a_peer_that_computes_something_else_is_named(monkeypatch):
    class Wrong(gpu_peers.ArrayCode):
        name = "wrong"

        def __init__(self, task):
            super().__init__(task)
            self.T = self.T * 0.9

    monkeypatch.setitem(gpu_peers.GROUPS, "torch", (Wrong,))
    with pytest.raises(WrongResultError, match=r"wrong on .*9-6-5-3.*its parameters are off"):
        fit(SMALL, "highest", "torch", ON_NUMPY, BRIEF)
    with pytest.raises(WrongResultError, match=r"wrong on .*9-6-5-3.*its gradient is off"):
        costs(SMALL, "highest", "torch", ON_NUMPY, 0.0)


def test_too_large_an_item_is_not_begun():
    giant = gpu_peers.GPU_NETWORKS["4096x4"]
    assert 5e9 < gpu_peers.memory_needed(giant, "highest") < 80e9

    class Tight(Host):
        def free_bytes(self):
            return 1 << 30

    with pytest.raises(TooLargeError, match=r"takes some \d+ GB, and 1 are free"):
        gpu_measure._if_it_fits(fit, giant, "highest", "torch", Tight())


def test_cold_runs_take_turns_after_a_flush():
    seen = []

    class Noted(Host):
        def flush(self):
            seen.append("flush")

        def timed(self, run):
            run()
            return 1e-6 * len(seen)

    found = cold(Noted(), {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 0.0, fewest=3)
    assert seen == ["a", "a", "b", "b", *["flush", "a", "flush", "b"] * 3]
    assert (found["a"].us, found["b"].us, found["a"].repeats) == (10.0, 12.0, 3)
    assert sample([1e-6, 2e-6, 3e-6, 4e-6, 5e-6]).spread == pytest.approx(2 / 3)


class Clocks:
    """CuPy as far as timing needs it: a host that takes 5 µs a launch, a device that a fill keeps busy for 100 µs."""

    host = device = 0.0

    def __init__(self):
        clocks = self

        class Event:
            def record(self):
                clocks.device = self.at = max(clocks.device, clocks.host)

            def synchronize(self):
                clocks.host = max(clocks.host, clocks.device)

        self.cuda = SimpleNamespace(
            Event=Event,
            Device=lambda: SimpleNamespace(id=0, synchronize=Event().synchronize),
            get_elapsed_time=lambda begin, end: 1e3 * (end.at - begin.at),
            runtime=SimpleNamespace(getDeviceProperties=lambda _: {"l2CacheSize": 50 << 20}),
        )
        self.zeros = lambda *_: SimpleNamespace(fill=lambda _: clocks.launch(100e-6))

    def launch(self, seconds):
        """A kernel."""
        self.host += 5e-6
        self.device = max(self.device, self.host) + seconds


def test_a_card_is_busy_while_the_launches_of_a_short_call_are_queued(monkeypatch):
    clocks = Clocks()
    monkeypatch.setitem(sys.modules, "cupy", clocks)
    card = Card()

    def call():
        for _ in range(100):
            clocks.launch(1e-6)

    card.wait()
    assert card.timed(call) == pytest.approx(501e-6)
    assert cold(card, {"call": call}, 0.0)["call"].us == pytest.approx(100.0)
    card.wait()
    began = clocks.host
    card.flush()
    assert clocks.host - began < 200e-6  # nobody waits
    card.wait()
    assert clocks.host - began == pytest.approx(2e-3, rel=0.1)


def test_peaks_of_the_host():
    found = peaks(ON_NUMPY, 128, 1 << 20)
    assert found.keys() >= {"highest", "bandwidth"}
    assert all(1e7 < value < 1e15 for value in found.values())


# ---- constants -------------------------------------------------------------------------------------------------------


def test_the_best_threshold():
    found = [(8, 1.0, 2.0), (16, 1.0, 1.1), (32, 2.0, 1.0), (64, 2.0, 1.0)]
    assert choices.threshold(found) == 32
    assert choices.loss_of(32, found) == 0.0
    assert choices.loss_of(16, found) == pytest.approx(1.1**0.25 - 1)
    assert choices.threshold([(8, 1.0, 2.0), (16, 1.0, 2.0)]) == 17  # never
    assert choices.threshold([(8, 2.0, 1.0)]) == 8


def test_when_a_graph_is_worth_it():
    us = {n: {"graph": 100.0 + n, "launches": 10.0 * n} for n in (1, 2, 4, 8, 16, 32)}
    assert choices.first_worth(us) == 16
    assert choices.first_worth({4: {"graph": 2.0, "launches": 1.0}}) is None
    us[32]["graph"] = 1e6
    assert choices.first_worth(us) is None


def test_one_choice_for_all_shapes():
    times = {"s": {"a": 1.0, "b": 1.2, "c": 2.0}, "t": {"a": 2.0, "b": 1.2, "c": 1.0}}
    best, losses = choices.choice_for_all(times)
    assert best == "b"
    assert losses["a"] == losses["c"] == pytest.approx(2**0.5 - 1)
