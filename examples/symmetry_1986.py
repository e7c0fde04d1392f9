"""Symmetry, learned as in 1986; and connections that skip a layer.

Six inputs are 0 or 1; the output is to be 1 if they are symmetric about their middle. Without hidden units this cannot
be learned. With two it can, and what they learn can be read from the weights: weights on either side of the middle are
equal and of opposite sign, so that symmetric patterns add up to 0 in both units, and each side has the ratios
1 : 2 : 4, so that no other pattern does. The second unit is the first with all signs reversed.

All as in the paper: E = ½ Σ over patterns of (y - d)², all 64 patterns in one sweep, Δw(t) = -ε ∂E/∂w(t) + α Δw(t - 1)
with ε = 0.1 and α = 0.9, weights uniform in [-0.3, 0.3] at first, 1,425 sweeps. Whether these sweeps are enough depends
on the first weights: most starts stay on a plateau where the 8 symmetric patterns are given up for the 56 others.

D. E. Rumelhart, G. E. Hinton and R. J. Williams, Learning representations by back-propagating errors, Nature 323
(1986), pp. 533-536: equations 1, 3 and 9, figure 1. The same paper allows connections that skip layers; exclusive or
with one hidden unit and the inputs connected to the output as well is from their chapter in Parallel Distributed
Processing, volume 1 (1986), chapter 8.
"""

from __future__ import annotations

import numpy as np
import page

import fastbp


def patterns(inputs: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """All rows of zeros and ones, and whether each is symmetric."""
    X = (np.arange(2**inputs)[:, None] >> np.arange(inputs)[::-1]) & 1
    return X.astype(float), np.equal(X, X[:, ::-1]).all(axis=1, keepdims=True).astype(float)


def learn(seed: int, sweeps: int) -> fastbp.MLP:
    X, T = patterns()
    net = fastbp.MLP(
        [6, 2, 1], activation="sigmoid", output="sigmoid", loss="half_sse", reduction="sum", dtype="float64"
    )
    net.theta = np.random.default_rng(seed).uniform(-0.3, 0.3, net.theta.shape)
    net.fit(X, T, epochs=sweeps, batch_size=64, shuffle=False, optimizer=fastbp.optim.Momentum(0.1, momentum=0.9))
    return net


def right(net: fastbp.MLP, X: np.ndarray, T: np.ndarray) -> int:
    return int(((net.forward(X) > 0.5) == (T > 0.5)).sum())


def exclusive_or(skip: bool, seed: int = 0) -> tuple[fastbp.MLP, int]:
    """XOR with one hidden unit, and how many of the four patterns are right."""
    X, T = patterns(2)
    T = 1.0 - T  # XOR is asymmetry of two inputs
    net = fastbp.MLP(
        [2, 1, 1],
        activation="sigmoid",
        output="sigmoid",
        loss="half_sse",
        reduction="sum",
        skip=[(0, 2)] if skip else [],  # the input also feeds layer 2, the output
        dtype="float64",
        seed=seed,
    )
    net.fit(X, T, epochs=4000, batch_size=4, shuffle=False, optimizer=fastbp.optim.Momentum(0.5, momentum=0.9))
    return net, right(net, X, T)


def main(seed: int = 1, sweeps: int = 1425, starts: int = 20, out: str | None = None) -> dict[str, float]:
    X, T = patterns()
    net = learn(seed, sweeps)
    W = net.weights[0]  # (6, 2)
    size = np.sort(np.abs(W[:3]), axis=0)  # of each unit, from the smallest
    ratios = size / size[0]
    asymmetry = float((np.abs(W + W[::-1]) / np.abs(W)).max())
    print(f"after {sweeps} sweeps {right(net, X, T)} of 64 patterns are right, E = {net.loss(X, T):.4f}\n")
    for unit in (0, 1):
        weights = "  ".join(f"{w:7.2f}" for w in W[:, unit])
        print(f"hidden unit {unit + 1}: weights {weights}   bias {net.biases[0][unit]:6.2f}")
    print(f"output: weights {net.weights[1][:, 0].round(2)}, bias {net.biases[1][0]:.2f}")
    print(f"\nratios of the sizes {[' : '.join(f'{r:.2f}' for r in unit) for unit in ratios.T]}; the paper: 1 : 2 : 4")
    print(f"mirrored weights add up to at most {asymmetry:.2%} of either")

    learned = sum(right(learn(start, sweeps), X, T) == 64 for start in range(starts))
    print(f"of {starts} random starts {learned} know all patterns after {sweeps} sweeps")

    skipping, with_skip = exclusive_or(skip=True)
    _, without = exclusive_or(skip=False)
    hidden = fastbp.dense(patterns(2)[0], skipping.weights[0], skipping.biases[0], "sigmoid")
    direct, weight = skipping.skip_weights[0, 2][:, 0], skipping.weights[1][0, 0]
    print(f"\nXOR with one hidden unit: {without} of 4 right; with connections past it {with_skip} of 4.")
    print(f"They weigh {direct.round(1)}. The hidden unit is {hidden[:, 0].round(2)} for 00, 01, 10, 11")
    print(f"and weighs {weight:.1f}: the exception to what the direct connections say.")

    if out:
        draw(net, page.picture(out, "symmetry_1986.png"))
    return {
        "right": right(net, X, T),
        "ratio_2": float(ratios[1].mean()),
        "ratio_4": float(ratios[2].mean()),
        "asymmetry": asymmetry,
        "learned": learned,
        "xor_with_skip": with_skip,
        "xor_without": without,
    }


def draw(net: fastbp.MLP, path: object) -> None:
    """The network: weights on the arcs, biases in the units; a hidden unit above the inputs and one below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    axes = figure.add_subplot()
    inputs, hidden, output = [(x, 0.0) for x in range(6)], [(2.5, 2.0), (2.5, -2.0)], (7.0, 0.0)
    largest = np.abs(net.weights[0]).max()

    def number(x: float) -> str:
        return f"{x:.1f}".replace("-", "−")

    def arc(a: tuple[float, float], b: tuple[float, float], weight: float) -> None:
        colour, style = ("#0072B2", "-") if weight > 0 else ("#C24E00", (0, (4, 1)))
        width = 0.6 + 3.0 * min(abs(weight) / largest, 1.2)
        axes.plot([a[0], b[0]], [a[1], b[1]], linestyle=style, color=colour, linewidth=width, zorder=1)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        x, y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
        axes.text(x, y, number(weight), color=colour, ha="center", va="center", bbox=box, zorder=2)

    for unit, place in enumerate(hidden):
        for k, source in enumerate(inputs):
            arc(source, place, net.weights[0][k, unit])
        arc(place, output, net.weights[1][unit, 0])
    units = [(p, f"$x_{k + 1}$", "#EEEEEE") for k, p in enumerate(inputs)]
    biases = [*net.biases[0], net.biases[1][0]]
    units += [(p, number(b), "white") for p, b in zip([*hidden, output], biases, strict=True)]
    for place, text, face in units:
        axes.plot(*place, "o", markersize=34, color=face, markeredgecolor="0.3", zorder=3)
        axes.text(*place, text, ha="center", va="center", zorder=4)
    axes.plot([2.5, 2.5], [-0.9, 0.9], color="0.6", linestyle=":", zorder=0)
    axes.set(xlim=(-0.5, 7.5), ylim=(-2.45, 2.45))
    axes.set_axis_off()
    axes.set_title("What detects symmetry: weights on the arcs (negative ones dashed), biases in the units")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    page.run(main)
