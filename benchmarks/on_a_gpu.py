"""All that needs a GPU in one go: correctness, memory and race checkers, timings. Started by scripts/test-gpu.

Kernels are compiled first, side by side. Parts are processes of their own, the most important first; what they found is
written to gpu.json and gpu.md after every one. No pip install and no network are needed, only numba-cuda, CuPy and
pytest; PyTorch and JAX are timed if they are there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import report_gpu
from gpu_device import machine
from parts import Outcome, Part, run_stages
from records import plain
from report import RESULTS, ROOT, progress

from fastbp.backends import gpu
from fastbp.files import replacing

HERE = Path(__file__).parent
TESTS = ROOT / "tests" / "cuda"
FOUND_ERRORS = 97  # exit status of the checkers when they have found something
NO_CARD = 2  # exit status
_SUMMARY = re.compile(
    r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards? displayed \((\d+) errors?, (\d+) warnings?)"
)


def stages() -> list[list[Part]]:
    """What is run: stages in order, the parts of a stage side by side; their shares are less than eight minutes."""
    return [
        [Part("keeping", (sys.executable, str(HERE / "gpu_compile.py")), 90, silence=150.0)],
        [_tests("kernels", 80), _tests("training", 80)],
        [_timings("timings", 100)],
        [_timings("goal", 60, "torch")],
        [_tests("limits", 35)],
        [_checker(tool, 40) for tool in report_gpu.CHECKERS],
        [_timings("sweeps", 25)],
        [_timings("jax", 20, "jax")],
        [_timings("compile", 25, "torch")],
    ]


def _tests(name: str, share: float) -> Part:
    files = str(TESTS / f"test_gpu_{name}.py")
    # warnings are a test's own business here: those of a package that nobody knows must not end everything
    options = ("-q", "-m", "gpu", "-p", "pytest_records", "-p", "no:cacheprovider", "-o", "filterwarnings=default")
    return Part(name, (sys.executable, "-m", "pytest", *options, files), share, fine=(0, 1, 5))


def _timings(name: str, share: float, package: str = "") -> Part:
    lacks = package and importlib.util.find_spec(package) is None
    command = (sys.executable, str(HERE / "gpu_measure.py"), name)
    silence = 150.0 if package == "torch" else 90.0  # torch.compile takes its time
    return Part(name, command, share, 15.0, silence, why_not=f"{package} is not installed" if lacks else "")


def _checker(tool: str, share: float) -> Part:
    path = shutil.which("compute-sanitizer")
    # calls that fail are numba-cuda's, which looks for functions that a driver may lack: what kernels do is looked at
    calls = ("--report-api-errors", "no") if tool == "memcheck" else ()
    command = ("compute-sanitizer", "--tool", tool, *calls, "--error-exitcode", str(FOUND_ERRORS), sys.executable)
    return Part(
        tool,
        (*command, str(HERE / "gpu_small.py")),
        share,
        fine=(0, FOUND_ERRORS),
        why_not="" if path else "compute-sanitizer is not on the path",
        last_word=lambda log: verdict(tool, log),
    )


def verdict(tool: str, log: str) -> dict[str, Any]:
    """What a checker said in the end, as an item."""
    found = _SUMMARY.findall(log)
    if not found:
        return {"item": tool, "state": "failed", "why": f"it gave no summary: {log[-500:]}"}
    total, errors, _ = found[-1]
    count = int(errors or total)
    said = [line for line in log.splitlines() if line.startswith("=========") and line.strip("= ")]
    said = [line for line in said if "Host Frame" not in line and "host backtrace" not in line]
    return {"item": tool, "state": "failed" if count else "passed", "errors": count, "why": "\n".join(said[:40])}


class Book:
    """The run so far, on disk after every part."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder = folder
        self.run: dict[str, Any] = {"machine": machine(), "minutes": minutes, "parts": []}
        self._lock = threading.Lock()

    def add(self, outcome: Outcome) -> None:
        """A part has ended."""
        with self._lock:
            self.run["parts"].append(plain(asdict(outcome)))
            self.write()
            counts = Counter(i["state"] for i in outcome.items)
            states = ", ".join(f"{count} {state}" for state, count in counts.items())
            progress(f"{outcome.name}: {outcome.state} in {outcome.seconds:.0f} s ({states or outcome.why})")

    def write(self) -> None:
        """gpu.json, then gpu.md."""
        for name, text in (
            ("gpu.json", lambda run: json.dumps(run, indent=1)),
            ("gpu.md", lambda run: shown(report_gpu.whole, run)),
        ):
            with replacing(self.folder / name) as file:
                file.write(text(self.run).encode())


def shown(table: Callable[..., str], *arguments: Any) -> str:
    """A table; what went wrong with it instead of what was measured being lost with it."""
    try:
        return table(*arguments)
    except Exception:
        return f"This cannot be shown:\n\n{traceback.format_exc()}"


def run(plan: Sequence[Sequence[Part]], folder: Path, minutes: float) -> int:
    """Run it, write it, print the short of it; the exit status."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    book = Book(folder, minutes)
    book.write()
    progress(report_gpu.machine_line(book.run))
    with tempfile.TemporaryDirectory() as logs:
        run_stages(plan, Path(logs), 60 * minutes, book.add)
    with contextlib.suppress(Exception):
        report_gpu.draw(book.run, folder / "gpu.png")
    for title, table in (
        ("left out", lambda run: "\n".join(report_gpu.left_out(run))),
        ("parts", report_gpu.parts_table),
        ("not right", lambda run: report_gpu.cases_table(run, only=report_gpu.BAD)),
        ("launches and graphs", report_gpu.overheads),
        ("constants", report_gpu.constants_table),
        ("how fast", report_gpu.short),
        ("goals", report_gpu.goals),
    ):
        if text := shown(table, book.run):
            print(f"\n== {title}\n\n{text}")
    problems = report_gpu.wrong(book.run)
    print(f"\n{time.monotonic() - began:.0f} s; {folder / 'gpu.json'}, gpu.md")
    print("\n".join(["WRONG:", *problems]) if problems else "nothing was found wrong")
    return 1 if problems else 0


def main(why_not: Callable[[], str | None] = lambda: gpu.missing("cuda")) -> int:
    parser = argparse.ArgumentParser(description="Test and time fastbp on this machine's GPU.")
    parser.add_argument("--minutes", type=float, default=8.0, help="what does not fit is left out, and named")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="folder for gpu.json, gpu.md, gpu.png")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these parts")
    asked = parser.parse_args()
    everything = stages()
    names = [part.name for stage in everything for part in stage]
    if unknown := set(asked.only or ()) - set(names):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if why := why_not():
        print(f"nothing to run: backend cuda cannot run here: {why}", file=sys.stderr)
        return NO_CARD
    chosen = [[part for part in stage if not asked.only or part.name in asked.only] for stage in everything]
    return run([stage for stage in chosen if stage], asked.out, asked.minutes)


if __name__ == "__main__":
    sys.exit(main())
