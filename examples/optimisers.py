"""Eight optimisers on one problem, from the same weights, on all rows in every step.

    SGD        θ ← θ - ε g
    momentum   v ← μ v + g, θ ← θ - ε v                      Polyak 1964
    Nesterov   v ← μ v + g, θ ← θ - ε (g + μ v)              Nesterov 1983, Sutskever et al. 2013
    Adagrad    s ← s + g², θ ← θ - ε g/√s                    Duchi, Hazan and Singer 2011
    RMSprop    s ← ρ s + (1 - ρ) g², θ ← θ - ε g/√s          Tieleman and Hinton 2012
    Adam       means of g and g², both corrected for their start at 0   Kingma and Ba 2015
    AdamW      Adam with weight decay apart from the gradient           Loshchilov and Hutter 2019
    FTRL       the θ that would have been best on all gradients so far  McMahan et al. 2013

The learning rate of each is the best of a small grid for this problem and number of steps. So the curves do not say
which optimiser is best; they show what each is like. Plain descent takes the largest rate that it survives, as its
spikes show; momentum, Nesterov and Adam average their steps and go further with fewer; Adagrad begins wildly while its
sums are small, and slows down as they grow.
"""

from __future__ import annotations

import page

import fastbp
from fastbp import optim

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def losses(name: str, rate: float, X, labels, steps: int) -> list[float]:
    net = fastbp.MLP([X.shape[1], 16, int(labels.max()) + 1], activation="tanh", loss="cross_entropy", seed=0)
    return net.fit(X, labels, epochs=steps, batch_size=len(X), optimizer=optim.OPTIMIZERS[name](rate)).loss


def main(steps: int = 200, data: str = "led", out: str | None = None) -> dict[str, float]:
    (X, labels), _ = page.labelled(data)
    best = {}
    print(f"{len(X)} rows in every step; loss after so many steps\n")
    shown = sorted({max(1, steps // 20), max(1, steps // 4), steps})
    print(f"{'':9} {'rate':>6} {''.join(f'{step:9}' for step in shown)}")
    for name in optim.OPTIMIZERS:
        runs = {rate: losses(name, rate, X, labels, steps) for rate in RATES}
        rate = min(runs, key=lambda rate: runs[rate][-1])
        best[name] = rate, runs[rate]
        print(f"{name:9} {rate:6g} {''.join(f'{runs[rate][step - 1]:9.4f}' for step in shown)}")
    if out:
        curves = {f"{name}, ε = {rate:g}": curve for name, (rate, curve) in best.items()}
        page.draw_curves(curves, page.picture(out, "optimisers.png"), "step")
    return {name: curve[-1] for name, (_, curve) in best.items()}


if __name__ == "__main__":
    page.run(main)
