"""Measure everything, and renew results/bench.json, docs/benchmark.png and the table in README.md.

    python benchmarks/report.py

README.md must hold the lines ``<!-- bench:begin -->`` and ``<!-- bench:end -->``: what stands between them is replaced.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastbp import measure

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def with_table(text: str, table: str) -> str:
    """The text with the part between its two marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no {BEGIN} … {END} to put the table in")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    with_table(text, "")  # complains before the measurement, not after it
    report = measure.run(progress=lambda line: print(line, file=sys.stderr))
    for folder in ("results", "docs"):
        (ROOT / folder).mkdir(exist_ok=True)
    measure.save_json(report, ROOT / "results" / "bench.json")
    measure.draw(report, ROOT / "docs" / "benchmark.png")
    readme.write_text(with_table(text, measure.plain_table(report)), encoding="utf-8")
    print(measure.plain_table(report))


if __name__ == "__main__":
    main()
