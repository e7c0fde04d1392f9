"""The naive gradient, one forward pass for every weight, beside backpropagation: networks that grow.

    ∂J/∂wₖ ≈ (J(w + h eₖ) - J(w))/h        P + 1 forward passes for P weights

is what the derivative means, needs no calculus, and is right to about half the digits. Backpropagation gives all
digits of all weights for one forward and one backward pass, whose cost is that of

    2 - P₁/ΣP forward passes               with Pₗ the operations of layer l's product,

two products a layer in the place of one, less the first, for nobody needs the gradient of the input. So the one's cost
grows with the weights times the cost of a pass, the other's with that of a pass alone.
"""

from __future__ import annotations

import numpy as np
import page

import fastbp
from fastbp import measure


def passes(net: fastbp.MLP, X: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, int]:
    """The naive gradient, and how many forward passes it took."""
    count = 0
    theta = net.theta
    h = np.finfo(theta.dtype).eps ** 0.5  # balances rounding, ε/h, and curvature, h

    def loss() -> float:
        nonlocal count
        count += 1
        return float(net.loss(X, T))

    here, gradient = loss(), np.empty_like(theta)
    for k, value in enumerate(theta.copy()):
        theta[k] = value + h
        gradient[k] = (loss() - here) / (theta[k] - value)  # by the step as it was rounded
        theta[k] = value
    return gradient, count


def main(networks: int = 6, effort: str = "brief", out: str | None = None) -> dict[str, list[float]]:
    net = fastbp.MLP([5, 3, 1], activation="sigmoid", output="sigmoid", loss="half_sse", dtype="float64", seed=0)
    rng = np.random.default_rng(0)
    X, T = rng.random((8, 5)), rng.random((8, 1))
    naive, count = passes(net, X, T)
    _, exact = net.loss_and_grad(X, T)
    error = float(np.abs(naive - exact).max())
    print(f"5-3-1: {net.theta.size} weights and biases, {count} passes; largest difference {error:.0e}\n")

    # the same, timed; where it would take too long, (P + 1) · a pass
    report = measure.run(measure.GROWING[:networks], backends=["cpu"], quick=effort == "brief")
    print(f"{'network':>12} {'P':>8} {'a pass':>9} {'backprop':>9} {'naive':>12} {'naive/backprop':>15}")
    for row in report.rows:
        naive_us = f"{'~' * row.naive_extrapolated}{row.naive_us:,.0f}"
        times = f"{row.loss_call_us:6.0f} µs {row.gradient_call_us:6.0f} µs {naive_us:>9} µs"
        print(f"{row.network:>12} {row.parameters:8,} {times} {row.naive_ratio:15,.0f}")
    print(f"(~: so many passes, not run{'; brief measurements, --effort full for better ones' * (effort == 'brief')})")
    if out:
        fastbp.pictures.cost_chart(report.rows, page.picture(out, "naive_gradient.png"))
    return {
        "error": [error],
        "passes": [count],
        "parameters": [row.parameters for row in report.rows],
        "naive_by_backprop": [row.naive_ratio for row in report.rows],
        "backward_by_forward": [row.ratio for row in report.rows],
        "theory": [row.ratio_products for row in report.rows],
    }


if __name__ == "__main__":
    page.run(main)
