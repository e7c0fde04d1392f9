"""Measure everything, and renew results/bench.json, docs/benchmark.png and the table in README.md.

    python benchmarks/report.py

README.md must hold the lines ``<!-- bench:begin -->`` and ``<!-- bench:end -->``: what stands between them is replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastbp import measure

ROOT = Path(__file__).parents[1]
README, RESULTS, DOCS = ROOT / "README.md", ROOT / "results", ROOT / "docs"


def with_table(text: str, table: str, name: str = "bench") -> str:
    """The text with the part between the two marks of that name replaced."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise SystemExit(f"README.md has no {begin} … {end} to put the table in")
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def renew_readme(table: str, name: str = "bench") -> None:
    """Put the table between README's marks of that name."""
    README.write_text(with_table(README.read_text(encoding="utf-8"), table, name), encoding="utf-8")


def progress(line: str) -> None:
    """Say what is being measured."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    with_table(README.read_text(encoding="utf-8"), "")  # complains before the measurement, not after it
    report = measure.run(progress=progress)
    for folder in (RESULTS, DOCS):
        folder.mkdir(exist_ok=True)
    measure.save_json(report, RESULTS / "bench.json")
    measure.draw(report, DOCS / "benchmark.png")
    renew_readme(measure.plain_table(report))
    print(measure.plain_table(report))


if __name__ == "__main__":
    main()
