"""Compiling the kernels without a GPU or a driver, to see what they need: registers, local memory, instructions.

    python -m fastbp.backends.cuda.offline > docs/gpu-kernels.md

Numba makes PTX, nvJitLink machine code; its log says how many registers and bytes a kernel takes, and nvdisasm (package
nvidia-cuda-nvdisasm) which instructions it has.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

from numba import cuda
from numba.cuda import dispatcher, types

from fastbp.backends.cuda.keeping import source_stamp
from fastbp.backends.cuda.kernels import KERNELS

TARGETS = ("sm_80", "sm_90", "sm_90a")  # ampere, hopper; "a" has what later cards need not have
_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Resources:
    """What a kernel takes on one target.

    Attributes:
        registers: a thread.
        stack, local, spills: bytes a thread, of memory that registers do not hold.
        opcodes: how many of each instruction the code has; empty without nvdisasm.
    """

    registers: int
    stack: int
    local: int
    spills: int
    opcodes: Counter[str]

    def count(self, start: str) -> int:
        """Instructions whose name begins so."""
        return sum(n for name, n in self.opcodes.items() if name.startswith(start))


@contextmanager
def _pretending(capability: tuple[int, int]) -> Iterator[None]:
    """Functions that kernels call ask for the current device's capability."""
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


@cache
def ptx(function: Callable[..., None], dtype: str, capability: tuple[int, int] = (8, 0)) -> str:
    """A kernel of (words, slots, one) as PTX, which is the same for every target but for the target's name."""
    signature = types.void(types.int64, types.int64, getattr(types, dtype))
    with _pretending(capability):
        made, _ = cuda.compile(function, signature, cc=capability, device=False, abi="numba", output="ptx")
    return str(made)


def resources(function: Callable[..., None], dtype: str, target: str, opcodes: bool = True) -> Resources:
    """Compile a kernel of (words, slots, one) for a target of TARGETS; counting its opcodes takes a second."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=target, verbose=True, ptxas_options=["-v"])
    code = ptx(function, dtype).replace(".target sm_80", f".target {target}")
    linker = Linker(ObjectCode.from_ptx(code.encode()), options=options)
    cubin = linker.link("cubin").code
    log = linker.get_info_log() or ""

    def bytes_of(pattern: str) -> int:
        return sum(int(n) for n in re.findall(rf"(\d+) {pattern}", log))

    found = re.search(r"used (\d+) registers", log, re.IGNORECASE)
    assert found, log
    spills = bytes_of("bytes spill stores") + bytes_of("bytes spill loads")
    return Resources(
        int(found[1]), bytes_of("stack,"), bytes_of("bytes lmem"), spills, _opcodes(cubin) if opcodes else Counter()
    )


def disassembler() -> str | None:
    """Where nvdisasm is, if its package is installed."""
    try:
        import nvidia
    except ImportError:
        return None
    found = [p for folder in nvidia.__path__ for p in Path(folder).glob("**/bin/nvdisasm")]
    return str(found[0]) if found else None


def _opcodes(code: bytes) -> Counter[str]:
    program = disassembler()
    if program is None:
        return Counter()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([program, file.name], capture_output=True, text=True, check=True).stdout
    return Counter(_OPCODE.findall(text))


def origin() -> str:
    """What kernels are made of, and by whom."""
    return f"sources {source_stamp()[:16]}, numba-cuda {version('numba-cuda')}"


def main() -> None:
    """Print a table of all kernels on all targets."""
    print("# What the GPU kernels take\n")
    print("Compiled without a card by `python -m fastbp.backends.cuda.offline`; bytes are a thread's.")
    print(f"Of {origin()}.\n")
    print("| kernel | dtype | target | threads | registers | shared, bytes | spills | stack | 128-bit loads | tensor |")
    print("| :-- | :-- | :-- | --: | --: | --: | --: | --: | --: | --: |")
    for dtype, kernels in KERNELS.items():
        for name, kernel in kernels.items():
            for target in TARGETS:
                r = resources(kernel.function, dtype, target)
                wide = r.count("LDG.E.128") + r.count("LD.E.128") + r.count("LDS.128") + r.count("LDGSTS.E.BYPASS.128")
                cells = [name, dtype, target, kernel.threads, r.registers, kernel.shared, r.spills, r.stack]
                print(f"| {' | '.join(map(str, [*cells, wide, r.count('HMMA')]))} |")


if __name__ == "__main__":
    main()
