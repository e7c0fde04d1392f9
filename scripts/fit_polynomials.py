"""Fit the polynomials of fastbp/polynomials.py and print that file.

    python scripts/fit_polynomials.py > fastbp/polynomials.py      # needs mpmath

Each table interpolates its function at Chebyshev nodes in 60 digits, which is within a small factor of the minimax
error; the error that each table reaches over its interval stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from mpmath import chebyfit, cos, erf, erfc, exp, expm1, fabs, linspace, log, mp, mpf, pi, polyval, sin, sqrt

mp.dps = 60

HEADER = '''"""Polynomial coefficients, highest power first; printed by scripts/fit_polynomials.py, do not edit."""

# One row a function: {dtype: coefficients}; "max error" is that of the exact polynomial over the interval.
'''


def expm1_tail(r: Any) -> Any:
    """(expm1(r) - r)/r**2, the part of exp that is left after r itself."""
    return (expm1(r) - r) / r**2 if fabs(r) > mpf("1e-15") else mpf(1) / 2 + r / 6


def log_tail(z: Any) -> Any:
    """(2 atanh(s)/s - 2)/z at z = s**2: log(1 + f) = s (2 + z log_tail(z)) with s = f/(2 + f)."""
    if z < mpf("1e-25"):
        return mpf(2) / 3 + 2 * z / 5
    s = sqrt(z)
    return (log((1 + s) / (1 - s)) / s - 2) / z


def log_rest(z: Any) -> Any:
    """(log_tail(z) - 2/3)/z: what is left of it where the 2/3 has more digits than a number."""
    return (log_tail(z) - mpf(2) / 3) / z if z > mpf("1e-15") else mpf(2) / 5 + 2 * z / 7


def sin_tail(z: Any) -> Any:
    """(sin(s)/s - 1)/z at z = s**2."""
    s = sqrt(z)
    return (sin(s) / s - 1) / z if z > mpf("1e-15") else z / 120 - mpf(1) / 6


def cos_tail(z: Any) -> Any:
    """(cos(s) - 1 + z/2)/z**2 at z = s**2."""
    return (cos(sqrt(z)) - 1 + z / 2) / z**2 if z > mpf("1e-10") else mpf(1) / 24 - z / 720


def scaled_erf(z: Any) -> Any:
    """erf(x)/x - 1 at z = x**2."""
    x = sqrt(z)
    return (erf(x) / x if z else 2 / sqrt(pi)) - 1


K = mpf(15) / 4  # maps [0, inf) to [-1, 1): t = (x - K)/(x + K), after Shepherd and Laframboise 1981


def scaled_erfc(t: Any) -> Any:
    """(1 + 2x) exp(x**2) erfc(x) at x = K (1 + t)/(1 - t)."""
    x = K * (1 + t) / (1 - t)
    return (1 + 2 * x) * exp(x * x) * erfc(x)


def table(f: Callable[[Any], Any], low: Any, high: Any, degree: int) -> tuple[list[Any], Any]:
    coefficients = chebyfit(f, [low, high], degree + 1)
    points = linspace(low, high, 999)
    return coefficients, max(fabs(polyval(coefficients, p) - f(p)) for p in points)


def last_t(x: int) -> Any:
    return (x - K) / (x + K)


TABLES: dict[str, tuple[Callable[[Any], Any], dict[str, tuple[Any, Any, int]]]] = {
    "EXPM1": (expm1_tail, {"float32": (-0.3475, 0.3475, 4), "float64": (-0.3475, 0.3475, 9)}),
    "LOG": (log_tail, {"float32": (0, 0.02955, 2), "float64": (0, 0.02955, 7)}),
    "LOG_REST": (log_rest, {"float32": (0, 0.02955, 2), "float64": (0, 0.02955, 7)}),
    "SIN": (sin_tail, {"float32": (0, 0.64, 2), "float64": (0, 0.618, 5)}),
    "COS": (cos_tail, {"float32": (0, 0.64, 2), "float64": (0, 0.618, 5)}),
    "ERF": (scaled_erf, {"float32": (0, 1, 6), "float64": (0, 1, 11)}),
    "ERFC": (scaled_erfc, {"float32": (-1, last_t(11), 11), "float64": (-1, last_t(28), 23)}),
}

PARTS: dict[str, tuple[str, Any, int]] = {
    "TWO_THIRDS": ("2/3", mpf(2) / 3, 2),
    "HALF_PI": ("pi/2", pi / 2, 3),
}


def parts(x: Any, dtype: str, count: int) -> list[float]:
    """x as a sum of numbers of the dtype, each the nearest to what the ones before it leave."""
    found: list[float] = []
    for _ in range(count):
        found.append(float(np.dtype(dtype).type(float(x))))
        x = x - mpf(found[-1])
    return found


def words(x: Any, count: int) -> list[int]:
    """The first bits of x < 1 in words of 64."""
    bits = int(x * mpf(2) ** (64 * count))
    return [bits >> 64 * k & (1 << 64) - 1 for k in reversed(range(count))]


def main() -> None:
    print(HEADER)
    for name, (f, rows) in TABLES.items():
        print(f"# {(f.__doc__ or '').strip()}")
        print(f"{name}: dict[str, tuple[float, ...]] = {{")
        for dtype, (low, high, degree) in rows.items():
            coefficients, error = table(f, mpf(low), mpf(high), degree)
            print(f'    "{dtype}": (  # [{float(low):.6g}, {float(high):.6g}], max error {float(error):.1e}')
            for c in coefficients:
                print(f"        {float(c)!r},")
            print("    ),")
        print("}\n")
    for name, (text, value, count) in PARTS.items():
        print(f"# {text} as a sum of {count} numbers, each the nearest to what the ones before it leave.")
        print(f"{name}: dict[str, tuple[float, ...]] = {{")
        for dtype in ("float32", "float64"):
            print(f'    "{dtype}": (')
            for part in parts(value, dtype, count):
                print(f"        {part!r},")
            print("    ),")
        print("}\n")
    print("# 2/pi 2^-65 in words of 64 bits, which reach as far as the last bits of a float64 need.")
    print("TWO_OVER_PI: tuple[int, ...] = (")
    with mp.workprec(1400):
        for word in words(2 / pi / mpf(2) ** 65, 19):
            print(f"    0x{word:016X},")
    print(")")


if __name__ == "__main__":
    main()
