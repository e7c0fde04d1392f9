"""The CPU that kernels are compiled for: its vectors and registers, and what products are cut into to suit them.

Asked of LLVM, without Numba, whose import takes longer than loading what it compiled before.
"""

from __future__ import annotations

import os
from functools import cache

from llvmlite import binding


@cache
def target() -> tuple[str, str, str]:
    """Triple, CPU name and feature string that Numba compiles for.

    NUMBA_CPU_NAME, NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX count; compiling.py compares it with what Numba says.
    """
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name.lower() == "generic" else _host_features(name)
    return binding.get_process_triple(), name, features


def _host_features(name: str) -> str:
    """What the host has, without AVX where Numba leaves it out: it is slow there, or only claimed to exist."""
    try:
        found = binding.get_host_cpu_features()
    except RuntimeError:
        return ""
    slow = {"corei7-avx", "core-avx-i", "sandybridge", "ivybridge", "nocona"}
    asked = os.environ.get("NUMBA_ENABLE_AVX", "")
    if asked == "0" or (not asked and (name in slow or not found.get("avx"))):
        for feature in found:
            if feature.startswith("avx"):
                found[feature] = False
    return str(found.flatten())


def _implied(triple: str, cpu: str) -> set[str]:
    """Of "avx512f", "avx2" and "fma", what the target has if only the CPU's name is given: LLVM knows it."""
    assembly = probe(triple, cpu)
    signs = {"avx512f": "zmm", "avx2": "ymm", "fma": "vfmadd"}
    return {feature for feature, sign in signs.items() if sign in assembly}


def probe(triple: str, cpu: str) -> str:
    """Assembly for that CPU of a fused multiply-add of 16 floats."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    vector = "<16 x float>"
    text = f"""target triple = "{triple}"
        declare {vector} @llvm.fma.v16f32({vector}, {vector}, {vector})
        define {vector} @probe({vector} %x, {vector} %y, {vector} %z) {{
            %r = call {vector} @llvm.fma.v16f32({vector} %x, {vector} %y, {vector} %z)
            ret {vector} %r
        }}"""
    machine = binding.Target.from_triple(triple).create_target_machine(cpu=cpu)
    return str(machine.emit_assembly(binding.parse_assembly(text)))


def _has() -> set[str]:
    triple, name, features = target()
    if features:
        return {f[1:] for f in features.split(",") if f[:1] == "+"}
    return _implied(triple, name)


_X86 = target()[0].startswith(("x86_64", "i686", "amd64"))
_HAS = _has() if _X86 else set()
HAS_FMA = not _X86 or "fma" in _HAS  # without, llvm.fma would call the C library for every lane
VECTOR_BYTES = 64 if "avx512f" in _HAS else 32 if {"avx2", "fma"} <= _HAS else 16
HAS_SCALEF = _X86 and VECTOR_BYTES == 64  # x 2^n in one instruction
VECTOR_REGISTERS = 16 if _X86 and VECTOR_BYTES < 64 else 32
HAS_BF16 = VECTOR_BYTES == 64 and "avx512bf16" in _HAS

# Register tile: ROWS x VECTORS accumulators. 24 of 32 registers, or 12 of 16, leave room for a row of B and the
# broadcast of A, and give more than one FMA a load. For two vectors a row, tiles of 10 and 12 rows were no faster.
TILE_ROWS, TILE_VECTORS = (8, 3) if VECTOR_REGISTERS == 32 else (6, 2)
HEIGHTS = (8, 4, 2, 1) if VECTOR_REGISTERS == 32 else (6, 5, 4, 3, 2, 1)  # of the tiles that there are
NARROW = TILE_VECTORS == 2  # a panel of B is one cache line wide
# Panels of B that are packed at once: 256 bytes of each row. Lines of rows that are 4 KB apart took 5 ns each alone and
# 2.7 ns four at a time; copying all of B straight on took 4.6 (1024 x 1024, a core with AVX2).
TOGETHER = 4 if NARROW else 1
# What the FMA peak is measured with: independent accumulators, enough to hide the latency, and none is spilled; FMAs of
# each in a turn of the loop.
CHAINS, LINKS = VECTOR_REGISTERS * 3 // 4, 4


def group_of(panel: int) -> int:
    """Rows of A that are packed side by side: with narrow panels those of one tile, which reads nothing else then."""
    return min(panel, TILE_ROWS) if NARROW else panel


def room_for_group(length: int, group: int, lanes: int) -> int:
    """Elements that such rows take, with those that the last vector goes beyond them: as many for each row."""
    return (length + (lanes + group - 1) // group) * group
