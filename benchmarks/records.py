"""What a part of a run found, a line of JSON at a time, so that nothing is lost when its process ends.

An item is begun, then it ends with what was found. A process that is started again leaves out what was begun before: an
item that began and never ended took its process with it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEVICE_LOST = 86  # exit status of a process that has to be started again
SECONDS = "FASTBP_SECONDS"  # how long a process has
ENV = "FASTBP_RECORDS"  # path of the file, for processes that are not asked in another way


def plain(value: Any) -> Any:
    """The same with what JSON has no word for, infinities and NaN, as text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a number of NumPy's
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lines(path: Path) -> list[dict[str, Any]]:
    """What is in the file; the last line may be half written."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def collected(path: Path, why: str = "") -> list[dict[str, Any]]:
    """Every item once, in order of beginning; those that never ended are "lost", because of ``why``."""
    items: dict[str, dict[str, Any]] = {}
    for line in lines(path):
        if line["state"] != "begun" or line["item"] not in items:
            items[line["item"]] = line
    return [i | {"state": "lost", "why": i.get("why", why)} if i["state"] == "begun" else i for i in items.values()]


class Records:
    """The file of one part, from the side of the process that finds things out.

    Attributes:
        before: items that were begun by processes before this one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = frozenset(line["item"] for line in lines(path))

    def begin(self, item: str) -> None:
        """The item is begun."""
        self.end(item, "begun")

    def end(self, item: str, state: str, **found: Any) -> None:
        """The item has ended: "done" or "passed", "failed", "skipped"."""
        line = json.dumps(plain({"item": item, "state": state, **found}), default=str)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def device_lost() -> str:
    """Why no more can be done on the device in this process; "" if it answers, or nobody has used it."""
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return ""
    try:
        cupy.cuda.get_current_stream().synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
