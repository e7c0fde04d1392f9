"""The loss around a trained network, seen in two filter-normalised directions.

The loss is a function of thousands of parameters; a picture has two. Li et al. draw

    f(a, b) = loss(θ + a d₁ + b d₂)

with random directions in which the incoming weights of every unit have the length that they have in the network. So a
step of 1 means the same in every layer and every network, and how fast the loss rises can be compared. Connections that
skip layers make the surface of a deep network smoother, which is what they found; here two deep, narrow networks are
compared, one a chain, one in which every second layer also receives what came in two layers before.

H. Li, Z. Xu, G. Taylor, C. Studer and T. Goldstein, Visualizing the Loss Landscape of Neural Nets (2018), arXiv
1712.09913.
"""

from __future__ import annotations

import numpy as np
import page

import fastbp

SIZE = 0.5


def main(
    depth: int = 8, epochs: int = 60, points: int = 31, seeds: int = 3, data: str = "led", out: str | None = None
) -> dict[str, float]:
    (X, labels), _ = page.labelled(data, 500)
    found: dict[str, float] = {}
    skips = [(layer - 2, layer) for layer in range(2, depth, 2)]
    for name, skip in (("chain", []), ("skipping", skips)):
        net = fastbp.MLP(
            [X.shape[1], *[12] * (depth - 1), 10], activation="tanh", loss="cross_entropy", skip=skip, seed=0
        )
        net.fit(X, labels, epochs=epochs, batch_size=32, optimizer=fastbp.optim.Adam(0.003))
        rises = []
        for seed in range(seeds):
            at, losses = fastbp.pictures.surface_values(net, X, labels, size=SIZE, points=points, seed=seed)
            border = np.abs(np.stack(np.meshgrid(at, at))).max(axis=0) > 0.99 * SIZE
            rises.append(float(losses[border].mean()))
        centre = float(losses[points // 2, points // 2])
        found |= {name: centre, f"{name} border": float(np.mean(rises)), f"{name} least": float(losses.min())}
        print(f"{name:9}: loss {centre:.4f} at the network, {np.mean(rises):.2f} on the border of the picture")
        if out:
            path = page.picture(out, f"loss_landscape_{name}.png")
            title = f"{depth} layers, {'with connections that skip one' if skip else 'a chain'}"
            fastbp.pictures.loss_surface(net, X, labels, path, size=SIZE, points=points, title=title)
    return found


if __name__ == "__main__":
    page.run(main)
