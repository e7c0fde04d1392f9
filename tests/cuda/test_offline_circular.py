"""The GPU's sine and cosine, compiled for the host: accurate for every size of number, and the special values.

What kernels get is LLVM code that calls libdevice for a few operations; here these are the host's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from llvmlite import binding, ir
from test_scalars import SPECIAL, exact_of, ulps

from fastbp.backends.cuda import ptx
from fastbp.backends.llvm import LARGEST_ANGLE, Value

NAMES = ("sin", "cos")


class Joining(ir.IRBuilder):
    """Makes a fused multiply-add of every sum that a product goes into, as ptxas may."""

    def fadd(self, x: Any, y: Any) -> Any:
        return self._joined(x, y, lambda v: v) or self._joined(y, x, lambda v: v) or super().fadd(x, y)

    def fsub(self, x: Any, y: Any) -> Any:
        return self._joined(x, y, self.fneg) or self._joined(self.fneg(y), x, lambda v: v) or super().fsub(x, y)

    def _joined(self, product: Any, other: Any, sign: Callable[[Any], Any]) -> Any:
        """The product + sign(other); None if it is no product, or one with the sign changed."""
        changed = getattr(product, "opname", "") == "fneg"
        product = product.operands[0] if changed else product
        if getattr(product, "opname", "") != "fmul":
            return None
        x, y = product.operands
        return self.call(library(self.module)["fma", x.type], [self.fneg(x) if changed else x, y, sign(other)])


def library(module: ir.Module) -> dict[tuple[str, Any], ir.Function]:
    """LLVM's functions for the host."""
    found = {}
    for kind, suffix in ((ptx.F32, "f32"), (ptx.F64, "f64")):
        for name, count in (("fma", 3), ("fabs", 1)):
            full = f"llvm.{name}.{suffix}"
            known = module.globals.get(full)
            found[name, kind] = known or ir.Function(module, ir.FunctionType(kind, [kind] * count), full)
    return found


def libdevice(module: ir.Module) -> None:
    """What the code takes from there, by the host's operations."""
    host = library(module)
    for kind, suffix, letter in ((ptx.F32, "f", "f"), (ptx.F64, "", "d")):
        for name, count in ((f"fma{suffix}", 3), (f"fabs{suffix}", 1), (f"{letter}mul_rn", 2)):
            function = ir.Function(module, ir.FunctionType(kind, [kind] * count), f"__nv_{name}")
            function.linkage = "internal"
            builder = ir.IRBuilder(function.append_basic_block())
            if count == 2:
                builder.ret(builder.fmul(*function.args))
            else:
                builder.ret(builder.call(host["fma" if count == 3 else "fabs", kind], function.args))


@cache
def compiled(name: str, dtype: str, joined: bool) -> tuple[Callable[..., None], Any]:
    """(addresses of arguments, of results, count) -> None, and what must live as long."""
    module = ir.Module()
    module.triple = binding.get_process_triple()
    libdevice(module)
    kind = ptx.F32 if dtype == "float32" else ptx.F64
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [kind.as_pointer()] * 2 + [ptx.I64]), "run")
    x, out, count = function.args
    entry, loop, end = (function.append_basic_block(label) for label in ("entry", "loop", "end"))
    b = (Joining if joined else ir.IRBuilder)(entry)
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(ptx.I64)
    m = ptx._ScalarEmitter(b, dtype)
    b.store(getattr(m, name)(Value(m, b.load(b.gep(x, [k])))).value, b.gep(out, [k]))
    after = b.add(k, ptx.I64(1))
    k.add_incoming(ptx.I64(0), entry)
    k.add_incoming(after, b.block)
    b.cbranch(b.icmp_signed("<", after, count), loop, end)
    b.position_at_end(end)
    b.ret_void()

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features
    )
    parsed = binding.parse_assembly(str(module))
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, ctypes.c_int64)(engine.get_function_address("run"))
    return run, engine


def apply(name: str, values: Any, dtype: str, joined: bool = False) -> np.ndarray:
    x = np.ascontiguousarray(values, dtype)
    out = np.empty_like(x)
    compiled(name, dtype, joined)[0](x.ctypes.data, out.ctypes.data, x.size)
    return out


@cache
def next_to_multiples(dtype: str) -> list[float]:
    """Of every exponent from 0 on, numbers about as near as any to a multiple of pi/2.

    m 2^k is near to one where m is the denominator of a convergent of 2^k 2/pi's continued fraction.
    """
    found = []
    digits, bits = np.finfo(dtype).nmant + 1, 2400
    with mpmath.workprec(bits):
        two_over_pi = int(mpmath.floor(2 / mpmath.pi * mpmath.mpf(2) ** (bits - 100)))
    for k in range(1 - digits, np.finfo(dtype).maxexp - digits + 1):
        numerator, denominator = two_over_pi << (k + digits), 1 << (bits - 100 + digits)
        q, before, last = 0, 1, []
        while q < 2**digits:
            last = [*last[-2:], q]
            whole, rest = divmod(numerator, denominator)
            numerator, denominator = denominator, rest
            q, before = whole * q + before, q
        for m in filter(None, last):
            m *= -(-(2 ** (digits - 1)) // m)  # as long as numbers of this exponent
            if m < 2**digits:
                found.append(float(np.ldexp(np.float64(m), k)))
    return found


def test_the_hardest_numbers_are_among_them():
    """Those that Kahan and Muller have found."""
    assert 6381956970095103 * 2.0**797 in next_to_multiples("float64")
    assert 16367173 * 2.0**72 in next_to_multiples("float32")


def points(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    info, limit = np.finfo(dtype), LARGEST_ANGLE[dtype]
    multiples = [*range(-8, 9), *rng.integers(1, int(limit * 2 / np.pi), 2000).tolist()]
    near = np.array([float(k * mpmath.pi / 2) for k in multiples]).astype(dtype)
    sizes = 2.0 ** rng.uniform(info.minexp - info.nmant, info.maxexp, 2000)
    parts = [near, np.nextafter(near, 0, dtype=dtype), next_to_multiples(dtype), sizes, -sizes]
    parts += [limit * rng.uniform(0.9, 1.1, 200), rng.uniform(-limit, limit, 500), rng.uniform(-8, 8, 2000)]
    powers = 2.0 ** np.arange(info.minexp - info.nmant, info.maxexp)
    edges = [powers, np.nextafter(limit, [0, np.inf], dtype=dtype), [limit, info.max, -info.max, 1e22]]
    return np.concatenate([*parts, *edges]).astype(dtype)


@pytest.mark.parametrize("joined", [False, True], ids=["as it is", "sums joined with products"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_accuracy(name, dtype, joined):
    x = points(dtype)
    with mpmath.workdps(360):
        exact = exact_of(getattr(mpmath, name), x)
    got = apply(name, x, dtype, joined)
    assert np.isfinite(got).all()
    assert ulps(got, exact, dtype) <= 1.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name, dtype):
    for x, expected in SPECIAL[name]:
        got = apply(name, [x], dtype)
        np.testing.assert_array_equal(got, np.array([expected], dtype), err_msg=f"{name}({x})")
        assert np.isnan(expected) or np.signbit(got[0]) == np.signbit(expected), f"{name}({x})"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_small_numbers(dtype):
    """Subnormal ones included."""
    info = np.finfo(dtype)
    x = 2.0 ** np.arange(info.minexp - info.nmant, -info.nmant, dtype=dtype)
    np.testing.assert_array_equal(apply("sin", [*x, *-x], dtype), np.array([*x, *-x]))
    np.testing.assert_array_equal(apply("cos", [*x, *-x], dtype), 1)


def test_joined_products_are_joined():
    """The builder that stands for ptxas: what is left of x y - x y is what rounding took."""
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ptx.F64, [ptx.F64] * 2), "run")
    b = Joining(function.append_basic_block())
    product = b.fmul(*function.args)
    assert b.fsub(product, product).opname == b.fadd(product, function.args[0]).opname == "call"
    assert b.fsub(*function.args).opname == "fsub"
