"""A differential equation, solved by a network that is differentiated twice with respect to its input.

    u″ = -u on [0, π/2],   u(0) = 0,   u(π/2) = 1;   exactly u = sin x

The boundary values are built in, so that only the equation is left to be learned (Lagaris, Likas and Fotiadis 1998):

    u(x) = 2x/π + x (π/2 - x) N(x),   loss = mean over points of (u″ + u)²

N is a small tanh network. u″ is the gradient of the gradient with respect to x, a graph again, through which the
gradient with respect to the weights passes: derivatives of the third order, and none of them by hand.
"""

from __future__ import annotations

import math

import numpy as np
import page

import fastbp

END = math.pi / 2


def solution(p, x):
    """u(x) for a column of points; p are the network's parameters by name."""
    hidden = fastbp.tanh(x @ p["dense0.W"] + p["dense0.b"])
    n = hidden @ p["dense1.W"] + p["dense1.b"]
    return x / END + x * (END - x) * n


def second_derivative(p, x):
    # a row's u depends on its own x alone, so that the gradient of the sum is each row's derivative
    def first(x):
        return fastbp.grad(lambda x: fastbp.sum(solution(p, x)))(x)

    return fastbp.grad(lambda x: fastbp.sum(first(x)))(x)


def loss(p, x):
    return fastbp.mean((second_derivative(p, x) + solution(p, x)) ** 2)


def main(hidden: int = 16, points: int = 40, steps: int = 3000, out: str | None = None) -> dict[str, float]:
    net = fastbp.MLP([1, hidden, 1], activation="tanh", dtype="float64", seed=0)  # holds the parameters
    p = net.views()  # by name; views of net.theta, so that what changes theta changes them
    x = np.linspace(0.0, END, points)[:, None]

    optimizer = fastbp.optim.Adam(fastbp.optim.CosineDecay(0.02, steps, final=1e-5))
    state = optimizer.init(net.theta)
    step = fastbp.value_and_grad(loss)
    losses = []
    for _ in range(steps):
        value, gradient = step(p, x)
        optimizer.update(net.theta, np.concatenate([g.ravel() for g in gradient.values()]), state)
        losses.append(float(value))
    print("step   mean (u″ + u)²")
    for k in sorted({0, steps // 100, steps // 10, steps - 1}):
        print(f"{k:5}  {losses[k]:.2e}")

    between = np.linspace(0.0, END, 501)[:, None]  # points that it was not trained on
    u, exact = solution(p, between), np.sin(between)
    error = float(np.abs(u - exact).max())
    print(f"\nlargest difference from sin x at 501 points: {error:.1e}")
    if out:
        draw(between, u, exact, losses, page.picture(out, "second_derivatives.png"))
    return {"first": losses[0], "last": losses[-1], "error": error}


def draw(x: np.ndarray, u: np.ndarray, exact: np.ndarray, losses: list[float], path: object) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.plot(x, exact, color="0.7", linewidth=5, label="sin x")
    left.plot(x, u, color="#C24E00", linewidth=1.5, label="the network")
    left.set(xlabel="x", title="u″ = −u, u(0) = 0, u(π/2) = 1")
    left.legend(frameon=False)
    middle.plot(x, u - exact, color="#0072B2")
    middle.set(xlabel="x", title="the network − sin x")
    middle.ticklabel_format(axis="y", scilimits=(0, 0), useMathText=True)
    right.plot(losses, color="#009E73", linewidth=0.8)
    right.set(xlabel="step", title="mean (u″ + u)²", yscale="log")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    page.run(main)
