"""The chain rule on a graph: f(g(h(j(x)))) with the values on every edge, and where two paths meet.

A chain of functions is differentiated by walking back along it: every function multiplies what comes back by its own
derivative, taken at the value that it saw on the way forward.

    dy/dx = f′(x₃) · g′(x₂) · h′(x₁) · j′(x),   x₁ = j(x), x₂ = h(x₁), x₃ = g(x₂), y = f(x₃)

Where a value is used twice, what the two consumers hand back is added, never averaged:

    z = k(x, y), x = g(s), y = h(s):   dz/ds = ∂z/∂x · dx/ds + ∂z/∂y · dy/ds

The derivative is a graph again, so that it can be differentiated once more.

Goodfellow, Bengio and Courville, Deep Learning (2016), section 6.5; there the algorithm is called build_grad.
"""

from __future__ import annotations

import math

import page

import fastbp


def j(x):
    return x**2


def h(x):
    return fastbp.tanh(x)


def g(x):
    return fastbp.exp(x)


def f(x):
    return fastbp.sin(x)


def chain(x):
    x1 = j(x)
    x2 = h(x1)
    x3 = g(x2)
    return f(x3)


def diamond(s):
    x = fastbp.sin(s)
    y = fastbp.exp(s)
    return x * y


def main(x: float = 0.5, out: str | None = None) -> dict[str, float]:
    trace = fastbp.trace(chain, x)
    print("y = sin(exp(tanh(x²)))\n")
    print(trace)
    (derivative,) = trace.gradients
    x1, x2, x3, _ = (step.value for step in trace.steps[1:])
    by_hand = math.cos(x3) * math.exp(x2) * (1 - math.tanh(x1) ** 2) * 2 * x
    print(f"\nby hand: cos(x₃) · exp(x₂) · (1 - tanh²(x₁)) · 2x = {by_hand:.6f}; by the graph {derivative:.6f}")

    print("\nz = sin(s) · exp(s): s is used twice, and its gradient is the sum of what comes back\n")
    both = fastbp.trace(diamond, x)
    print(both)
    parts = [edge.contribution for step in both.steps for edge in step.edges if edge.source == 0]
    print(f"\n{' + '.join(f'{part:.6f}' for part in parts)} = {both.gradients[0]:.6f}")

    second = fastbp.grad(fastbp.grad(diamond))(x)  # (eˢ sin s)″ = 2 eˢ cos s
    print(f"the gradient's gradient: {second:.6f}; 2 exp(s) cos(s) = {2 * math.exp(x) * math.cos(x):.6f}")

    if out:
        fastbp.pictures.computational_graph(trace, page.picture(out, "chain_rule.png"), title="y = sin(exp(tanh(x²)))")
        title = "z = sin(s) · exp(s)"
        fastbp.pictures.computational_graph(both, page.picture(out, "two_paths.png"), title=title, direction="down")
    return {
        "derivative": float(derivative),
        "by_hand": by_hand,
        "two_paths": float(both.gradients[0]),
        "sum_of_parts": float(sum(parts)),
        "second": float(second),
    }


if __name__ == "__main__":
    page.run(main)
