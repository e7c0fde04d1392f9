"""One question, several answers: a mixture density network on an inverse problem.

    x = t + 0.3 sin(2πt) + uniform noise of ± 0.1

For one t there is one x; but for one x between 0.3 and 0.7 there are three t. A network trained on squared errors gives
their mean, which is no answer at all. Let the network give a density instead, a mixture of K normal ones, and make the
data likely:

    p(t | x) = Σₖ πₖ(x) N(t; μₖ(x), σₖ(x)),   loss = -mean log p(t | x)

with π = softmax, σ = exp of the network's outputs. The loss is a plain Python function; log Σ exp keeps it finite.

C. M. Bishop, Mixture Density Networks (1994), Aston University NCRG/94/004.
"""

from __future__ import annotations

import math

import numpy as np
import page

import fastbp


def forward(t: np.ndarray) -> np.ndarray:
    return t + 0.3 * np.sin(2 * np.pi * t)


def data(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.0, 1.0, (rows, 1))
    return forward(t) + rng.uniform(-0.1, 0.1, (rows, 1)), t


def outputs(p, x):
    """(n, 3 K) numbers: logits of π, μ, log σ."""
    hidden = fastbp.tanh(x @ p["dense0.W"] + p["dense0.b"])
    return hidden @ p["dense1.W"] + p["dense1.b"]


def log_parts(z, t, k):
    """log πₖ N(t; μₖ, σₖ) of every part, (n, K)."""
    log_pi, mu, log_sigma = fastbp.log_softmax(z[:, :k]), z[:, k : 2 * k], z[:, 2 * k :]
    return log_pi - 0.5 * ((t - mu) * fastbp.exp(-log_sigma)) ** 2 - log_sigma - 0.5 * math.log(2 * math.pi)


def loss(p, x, t, k):
    return -fastbp.mean(fastbp.logsumexp(log_parts(outputs(p, x), t, k), axis=1))


def main(
    parts: int = 3, hidden: int = 24, rows: int = 1000, steps: int = 3000, out: str | None = None
) -> dict[str, float]:
    x, t = data(rows)
    mean = fastbp.MLP([1, hidden, 1], activation="tanh", loss="mse", dtype="float64", seed=0)
    mean.fit(x, t, epochs=300, batch_size=100, optimizer=fastbp.optim.Adam(0.01))

    net = fastbp.MLP([1, hidden, 3 * parts], activation="tanh", dtype="float64", seed=0)  # holds the parameters
    net.biases[1][parts : 2 * parts] = np.linspace(0.2, 0.8, parts)  # the parts begin apart
    p = net.views()
    optimizer = fastbp.optim.Adam(fastbp.optim.CosineDecay(0.01, steps))
    state, step = optimizer.init(net.theta), fastbp.value_and_grad(loss)
    for k in range(steps):
        value, gradient = step(p, x, t, parts)
        optimizer.update(net.theta, np.concatenate([g.ravel() for g in gradient.values()]), state)
        if k % max(1, steps // 5) == 0:
            print(f"step {k:5}: -log p {value:7.4f}")

    # how good on new data: the mean network as one normal density with the spread of its errors
    x_new, t_new = data(rows, seed=1)
    final = float(loss(p, x_new, t_new, parts))
    spread = float(np.std(t - mean.forward(x)))
    squares = float(np.mean((t_new - mean.forward(x_new)) ** 2))
    single = 0.5 * squares / spread**2 + math.log(spread) + 0.5 * math.log(2 * math.pi)
    print(f"\nnew data, -log p: mixture of {parts} {final:.3f}, squared error as one normal density {single:.3f}")

    z = outputs(p, np.array([[0.5]]))
    answers = sorted(float(m) for m in z[0, parts : 2 * parts])
    fine = np.linspace(0.0, 1.0, 10_000)
    true = fine[1:][np.diff(forward(fine) > 0.5)]  # where the curve crosses it
    average = float(mean.forward([[0.5]])[0, 0])
    print(f"t at x = 0.5: {true.round(2).tolist()}; means of the parts: {[round(a, 2) for a in answers]}")
    z_at = outputs(p, np.array([[0.65]]))[0]
    mixture = zip(fastbp.softmax(z_at[:parts]), z_at[parts : 2 * parts], strict=True)
    shown = " or ".join(f"{mu:.2f} ({pi:.0%})" for pi, mu in sorted(mixture, key=lambda part: part[1]))
    print(f"t at x = 0.65: {shown}; by squared error {mean.forward([[0.65]])[0, 0]:.2f}, where there is nothing")
    if out:
        draw(x, t, mean, p, parts, page.picture(out, "mixture_density.png"))
    return {"mixture": final, "single": single, "answers": answers, "true": true.tolist(), "mean": average}


def draw(x: np.ndarray, t: np.ndarray, mean: fastbp.MLP, p: dict, parts: int, path: object) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    grid, heights = np.linspace(-0.05, 1.05, 221)[:, None], np.linspace(-0.05, 1.05, 221)
    for axes in (left, right):
        axes.plot(x, t, ".", color="0.65", markersize=2, zorder=0)
        axes.set(xlabel="x", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
        axes.spines[["top", "right"]].set_visible(False)
    left.plot(grid, mean.forward(grid), color="#C24E00", linewidth=2)
    left.set(ylabel="t", title="squared error: the mean of the answers")
    z = outputs(p, grid)
    density = np.exp(np.stack([log_parts(z, height, parts) for height in heights])).sum(axis=2)
    extent = (-0.05, 1.05, -0.05, 1.05)
    right.imshow(density, origin="lower", extent=extent, aspect="auto", cmap="Blues", vmax=6.0, zorder=-1)
    weights, styles = fastbp.softmax(z[:, :parts]), ("-", "--", "-.", ":")
    for k in range(parts):
        likely = np.where(weights[:, k] > 0.1, z[:, parts + k], np.nan)
        right.plot(grid, likely, styles[k % 4], color="#C24E00", linewidth=1.5)
    right.set(title="mixture density (blue) and the means of its parts")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    page.run(main)
