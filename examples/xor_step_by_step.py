"""Exclusive or, by a network of two inputs, two hidden units and one output: every number of one step, then training.

Forward, a layer at a time, keeping what comes back to be used (column vectors in most lectures; rows here, A W + b):

    z₁ = x W₁ + b₁, a₁ = σ(z₁);   z₂ = a₁ W₂ + b₂, a₂ = σ(z₂);   J = ½ (a₂ - y)²

Backward, g = dJ/da from the output on:

    g = a₂ - y                  (prediction minus target: with the sign reversed, descent would ascend)
    δ₂ = g ⊙ σ′(z₂)             σ′(z) = a (1 - a), taken from the output: e⁻ᶻ/(1 + e⁻ᶻ)² would overflow
    dW₂ = a₁ᵀ δ₂, db₂ = δ₂
    g = δ₂ W₂ᵀ                  with the W₂ that was used forward
    δ₁ = g ⊙ σ′(z₁)
    dW₁ = xᵀ δ₁, db₁ = δ₁

Only now W ← W - ε dW and b ← b - ε db, all at once: an update of W₂ before g is passed down gives another δ₁.

Goodfellow, Bengio and Courville, Deep Learning (2016), algorithms 6.3 and 6.4.
"""

from __future__ import annotations

import numpy as np
import page

import fastbp

X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = np.array([[0.0], [1.0], [1.0], [0.0]])
W1, B1 = np.array([[0.5, -0.3], [-0.2, 0.8]]), np.array([0.1, -0.1])
W2, B2 = np.array([[0.7], [-0.4]]), np.array([0.2])


def show(name: str, value: object) -> None:
    rows = np.array2string(np.atleast_2d(value), precision=5, suppress_small=True, floatmode="fixed").split("\n")
    print("\n".join(f"  {name if k == 0 else '':<8}{'=' if k == 0 else ' '} {row}" for k, row in enumerate(rows)))


def one_step(net: fastbp.MLP, x: np.ndarray, y: np.ndarray, rate: float) -> dict[str, float]:
    """Forward, backward and update for one pattern, by hand; the network's own numbers are compared to them."""
    (w1, w2), (b1, b2) = net.weights, net.biases
    print(f"forward, x = {x[0]}, y = {y[0, 0]:g}")
    z1 = x @ w1 + b1
    a1 = fastbp.sigmoid(z1)
    z2 = a1 @ w2 + b2
    a2 = fastbp.sigmoid(z2)
    loss = 0.5 * np.sum((a2 - y) ** 2)
    for name, value in (("z1", z1), ("a1", a1), ("z2", z2), ("a2", a2), ("J", loss)):
        show(name, value)

    print("backward")
    g2 = a2 - y
    delta2 = g2 * a2 * (1 - a2)
    dw2, db2 = a1.T @ delta2, delta2.sum(axis=0)
    g1 = delta2 @ w2.T
    delta1 = g1 * a1 * (1 - a1)
    dw1, db1 = x.T @ delta1, delta1.sum(axis=0)
    numbers = {"g2": g2, "delta2": delta2, "dW2": dw2, "db2": db2, "g1": g1, "delta1": delta1, "dW1": dw1, "db1": db1}
    for name, value in numbers.items():
        show(name, value)

    value, gradient = net.loss_and_grad(x, y)
    by_hand = np.concatenate([part.ravel() for part in (dw1, db1, dw2, db2)])  # as theta lies
    deltas = net.deltas(x, y)
    errors = [abs(value - loss), *(np.abs(a - b).max() for a, b in zip(deltas, (delta1, delta2), strict=True))]
    errors.append(np.abs(gradient - by_hand).max())
    print(f"net.loss_and_grad and net.deltas differ from this by at most {max(errors):.1e}")

    too_early = (delta2 @ (w2 - rate * dw2).T) * a1 * (1 - a1)
    print(f"update, all at once, ε = {rate:g}")
    net.theta -= rate * gradient
    for name, value in (("W1", net.weights[0]), ("b1", net.biases[0]), ("W2", net.weights[1]), ("b2", net.biases[1])):
        show(name, value)
    after = float(net.loss(x, y))
    print(f"J was {loss:.6f} and is {after:.6f}")
    print(f"(had W2 been updated before g1 was made, delta1 would have been {too_early[0].round(6)})")
    return {
        "loss": float(loss),
        "after": after,
        "error": float(max(errors)),
        "too_early": float(np.abs(too_early - delta1).max()),
    }


def loss_of_one(W1, b1, W2, b2, x, y):
    """The same loss as a plain function, to be traced."""
    hidden = fastbp.sigmoid(x @ W1 + b1)
    output = fastbp.sigmoid(hidden @ W2 + b2)
    return fastbp.sum((output - y) ** 2) / 2.0


def network(w1: np.ndarray) -> fastbp.MLP:
    net = fastbp.MLP([2, 2, 1], activation="sigmoid", output="sigmoid", loss="half_sse", dtype="float64", seed=0)
    net.theta = np.concatenate([part.ravel() for part in (w1, B1, W2, B2)])
    return net


def train(net: fastbp.MLP, epochs: int) -> int:
    """Full-batch gradient descent; how many of the four patterns are right then."""
    net.fit(X, Y, epochs=epochs, batch_size=4, shuffle=False, optimizer=fastbp.optim.SGD(5.0))
    return int(((net.forward(X) > 0.5) == (Y > 0.5)).sum())


def main(rate: float = 0.5, epochs: int = 4000, out: str | None = None) -> dict[str, float]:
    net = network(W1)
    found = one_step(net, X[2:3], Y[2:3], rate)

    solved = train(net, epochs)
    print(f"\n{epochs} sweeps over the four patterns later, J = {net.loss(X, Y):.6f}")
    for x, y, a in zip(X, Y, net.forward(X), strict=True):
        print(f"  {x[0]:g} xor {x[1]:g} = {y[0]:g}: {a[0]:.4f}")
    other = network(np.abs(W1) * [[1.0, -1.0], [1.0, 1.0]])
    unlucky = train(other, epochs)
    print(f"from a W1 with 0.2 for -0.2 only {unlucky} of 4 would be right: J = {other.loss(X, Y):.4f}, a plateau")

    if out:
        trace = fastbp.trace(loss_of_one, W1, B1, W2, B2, X[2:3], Y[2:3])
        title = "2-2-1 on (1, 0): values forward, gradients backward"
        fastbp.pictures.computational_graph(trace, page.picture(out, "xor_graph.png"), title=title)
        fastbp.pictures.decision_boundary(net, X, Y[:, 0].astype(int), page.picture(out, "xor_decided.png"))
    return {**found, "solved": solved, "final": float(net.loss(X, Y)), "unlucky": unlucky}


if __name__ == "__main__":
    page.run(main)
