"""The learning rate: too small, right, too large, on one surface.

A line y = a x + b is fitted to points by gradient descent on the mean of (a x + b - y)². The surface over (a, b) is a
bowl, as much longer than wide as the inputs' mean and spread make it:

    (a, b) ← (a, b) - ε ∇J,   which converges only for ε < 2/λ, λ the largest eigenvalue of the Hessian of J

Too small a rate has not arrived when the steps are used up; one above half that limit jumps from side to side of the
valley; above the limit each jump is longer than the last.
"""

from __future__ import annotations

import numpy as np
import page

from fastbp import graph, pictures

START, STEPS = (-1.5, 2.0), 40


def main(steps: int = STEPS, out: str | None = None) -> dict[str, float]:
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.4, 2.0, (40, 1))
    y = 1.2 * x - 0.5 + 0.1 * rng.normal(size=(40, 1))

    a, b = graph.param("a", (1, 1)), graph.param("b", (1, 1))
    X, Y = graph.input("x", 1), graph.input("y", 1)
    loss = (X * a + b - Y).square().mean()
    values = {"x": x, "y": y}

    # the Hessian, as gradients of gradients
    (da, db) = graph.gradients(loss, [a, b])
    second = [*graph.gradients(da, [a, b]), *graph.gradients(db, [a, b])]
    hessian = np.reshape(graph.compile(second, inputs=[a, b, Y])(a=[[0.0]], b=[[0.0]], **values), (2, 2))
    limit = 2 / np.linalg.eigvalsh(hessian)[-1]
    print(f"Hessian {hessian.round(3).tolist()}: descent converges for ε < {limit:.4f}\n")

    function = pictures.two_parameters(loss, values)
    rates = [float(f"{share * limit:.2g}") for share in (0.02, 0.6, 1.08)]
    runs = [pictures.descend(function, START, rate, steps) for rate in rates]
    for name, run in zip(("too small", "right", "too large"), runs, strict=True):
        end = ", ".join(f"{number:.4g}" for number in run.points[-1])
        print(
            f"ε = {run.learning_rate:5g}, {name:9}: after {len(run.losses) - 1} steps ({end}), J = {run.losses[-1]:.4g}"
        )
    best = np.polyfit(x[:, 0], y[:, 0], 1)
    print(f"least squares in closed form: ({best[0]:.4g}, {best[1]:.4g})")
    if out:
        path = page.picture(out, "learning_rates.png")
        pictures.descent(loss, path, start=START, learning_rates=rates, steps=steps, values=values)
    return {
        "limit": float(limit),
        "small": float(runs[0].losses[-1]),
        "right": float(runs[1].losses[-1]),
        "large": float(runs[2].losses[-1]),
        "start": float(runs[0].losses[0]),
        "distance": float(np.linalg.norm(runs[1].points[-1] - best)),
    }


if __name__ == "__main__":
    page.run(main)
