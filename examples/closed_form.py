"""The gradient of a small network in closed form, and training on random pairs until nothing improves.

A network without biases, one hidden layer, sigmoids in both layers (column vectors here):

    f(X) = σ(W₂ h),   h = σ(W₁ X),   loss ‖f(X) - Y‖²        (the sum; a "mean squared error" would divide)

By rows k of the matrices, with σ′ taken from the output, a (1 - a):

    ∂/∂W₂,ₖ = 2 (f - Y)ₖ σ′(W₂,ₖ h) hᵀ
    ∂/∂W₁,ₖ = [2 (f - Y)ᵀ J₂ W₂,·ₖ] σ′(W₁,ₖ X) Xᵀ,   J₂ = diag σ′(W₂ h)

In the second line some lecture notes have a vector of ones in the place of the column W₂,·ₖ, and σ′ at W₁ h: neither is
a gradient. Right, it is what backpropagation computes, to rounding; but backpropagation shares what the rows have in
common, and does not stop at two layers.

Then the simplest training: step along -∇ on one random pair after another, until the loss no longer improves.

After F. Reinbott, Backpropagation, das Lernen eines Neuronalen Netzes aus Daten (2020), corrected.
"""

from __future__ import annotations

import numpy as np
import page

import fastbp


def slope(a: np.ndarray) -> np.ndarray:
    """σ′ from the sigmoid's output."""
    return a * (1 - a)


def closed_form(W1: np.ndarray, W2: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """dW1 (l, n) and dW2 (d, l) of ‖f(x) - y‖², a row at a time as in the formulas above."""
    h = fastbp.sigmoid(W1 @ x)
    f = fastbp.sigmoid(W2 @ h)
    error = 2 * (f - y)
    dW2 = np.stack([error[k] * slope(f[k]) * h for k in range(len(W2))])
    dW1 = np.stack([(error * slope(f) @ W2[:, k]) * slope(h[k]) * x for k in range(len(W1))])
    return dW1, dW2


def with_ones(W1: np.ndarray, W2: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The formula with the slip, ones for W₂,·ₖ: not a gradient."""
    h = fastbp.sigmoid(W1 @ x)
    f = fastbp.sigmoid(W2 @ h)
    return np.stack([(2 * (f - y) * slope(f)).sum() * slope(h[k]) * x for k in range(len(W1))])


def main(
    hidden: int = 16, rate: float = 0.05, data: str = "led", epochs: int = 300, out: str | None = None
) -> dict[str, float]:
    (X, labels), (X_test, labels_test) = page.labelled(data)
    T = np.eye(int(labels.max()) + 1)[labels]
    net = fastbp.MLP(
        [X.shape[1], hidden, T.shape[1]],
        activation="sigmoid",
        output="sigmoid",
        loss="sse",
        bias=False,
        dtype="float64",
        seed=0,
    )
    W1, W2 = (w.T for w in net.weights)  # fastbp keeps (fan_in, fan_out)
    errors, slips = [], []
    for x, t in zip(X[:20], T[:20], strict=True):
        _, gradient = net.loss_and_grad(x[None], t[None])
        backprop = [w.T for w in net.split(gradient)[0]]
        rows = closed_form(W1, W2, np.asarray(x, float), t)
        errors += [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(rows, backprop, strict=True)]
        slips.append(np.abs(with_ones(W1, W2, np.asarray(x, float), t) - backprop[0]).max() / np.abs(backprop[0]).max())
    print(f"closed form against backpropagation, 20 pairs: relative difference at most {max(errors):.1e}")
    print(f"with ones in the place of W₂: {max(slips):.1f}")

    history = net.fit(
        X,
        T,
        epochs=epochs,
        batch_size=1,
        sampling="replacement",  # n random pairs an "epoch": some twice, some not at all
        optimizer=fastbp.optim.SGD(rate),
        tol=1e-3 * len(X),  # the loss is a sum over the pairs
        patience=5,
    )
    accuracy = float(np.mean(net.forward(X_test).argmax(axis=1) == labels_test))
    print(f"\n{history.epochs * len(X)} random pairs, then stopped for: {history.stopped}")
    for epoch in sorted({0, history.epochs // 4, history.epochs // 2, history.epochs - 1}):
        print(f"  loss of {len(X)} pairs, epoch {epoch + 1:3}: {history.loss[epoch]:8.1f}")
    print(f"held-out accuracy {accuracy:.3f}")
    if out:
        losses = {f"‖f(X) - Y‖², {len(X)} random pairs": history.loss}
        page.draw_curves(losses, page.picture(out, "closed_form.png"), f"epoch of {len(X)} pairs", "loss, their sum")
    return {
        "error": float(max(errors)),
        "slip": float(min(slips)),
        "epochs": history.epochs,
        "stopped": history.stopped,
        "first": history.loss[0],
        "last": min(history.loss),
        "accuracy": accuracy,
    }


if __name__ == "__main__":
    page.run(main)
