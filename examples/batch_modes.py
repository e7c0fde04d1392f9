"""Full batch, mini-batches, single rows, random pairs: one loop, four ways to choose the rows of a step.

    g = 1/|I| Σ over i in I of ∇ lossᵢ,   θ ← θ - ε g

I is all rows (one step an epoch), 32 of them, or one; an epoch has used every row exactly once, in an order of its own.
Random pairs are drawn instead, so that an "epoch" of n draws meets some rows twice and others not at all. What is
averaged are the gradients of the single rows' losses. With the same learning rate and the same work, small batches take
more steps and get further; large ones take smoother steps, and compute faster.

In fastbp's ``fit`` it is ``batch_size`` and ``sampling``; the loop itself is written out below with the same result.
"""

from __future__ import annotations

import numpy as np
import page

import fastbp


def network(inputs: int, classes: int) -> fastbp.MLP:
    return fastbp.MLP([inputs, 16, classes], activation="tanh", loss="cross_entropy", dtype="float64", seed=0)


def loop(
    net: fastbp.MLP, X: np.ndarray, labels: np.ndarray, orders: np.ndarray, batch: int, rate: float
) -> list[float]:
    """The training loop: forward, loss, backward, step. Mean loss before the updates of every epoch."""
    losses = []
    for order in orders:  # of the rows, one an epoch
        total = 0.0
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            loss, gradient = net.loss_and_grad(X[rows], labels[rows])
            net.theta -= rate * gradient
            total += float(loss) * len(rows)
        losses.append(total / len(order))
    return losses


def main(
    epochs: int = 20, rate: float = 0.1, data: str = "led", out: str | None = None
) -> dict[str, dict[str, float | int]]:
    (X, labels), (X_test, labels_test) = page.labelled(data)
    n, classes = len(X), int(labels.max()) + 1
    modes = {
        "full batch": {"batch_size": n},
        "mini-batches of 32": {"batch_size": 32},
        "single rows": {"batch_size": 1},
        "random pairs": {"batch_size": 1, "sampling": "replacement"},
    }
    found, histories = {}, {}
    print(f"{n} rows, {epochs} epochs, learning rate {rate:g}\n")
    print(f"{'':20} {'steps':>6} {'first loss':>11} {'last loss':>10} {'held out':>9} {'seconds':>8}")
    for name, mode in modes.items():
        net = network(X.shape[1], classes)
        history = net.fit(X, labels, epochs=epochs, optimizer=fastbp.optim.SGD(rate), **mode)
        steps, accuracy = epochs * -(-n // mode["batch_size"]), net.score(X_test, labels_test)
        seconds = sum(history.seconds)
        print(f"{name:20} {steps:6} {history.loss[0]:11.4f} {history.loss[-1]:10.4f} {accuracy:9.3f} {seconds:8.3f}")
        found[name] = {"steps": steps, "loss": history.loss[-1], "accuracy": accuracy}
        histories[name] = history.loss

    # the loop written out, on rows in order, is what fit does
    by_fit, by_hand = network(X.shape[1], classes), network(X.shape[1], classes)
    by_fit.fit(X, labels, epochs=2, batch_size=32, shuffle=False, optimizer=fastbp.optim.SGD(rate))
    loop(by_hand, X, labels, np.tile(np.arange(n), (2, 1)), 32, rate)
    found["loop"] = {"difference": float(np.abs(by_fit.theta - by_hand.theta).max())}
    print(f"\nthe loop written out ends at the same parameters, up to {found['loop']['difference']:.0e}")

    if out:
        path = page.picture(out, "batch_modes.png")
        page.draw_curves(histories, path, "epoch: each row once, or as many random pairs")
    return found


if __name__ == "__main__":
    page.run(main)
