"""A neural field: a network that is a picture, (x, y) -> colour.

Fed with the coordinates alone, a small network gives a blur: it learns low frequencies first, and sharp edges hardly at
all. Fed with sines and cosines of them,

    γ(v) = (sin 2ᵏ π v, cos 2ᵏ π v),   k = 0 … K - 1,   for v = x and y,

the same network draws the edges. Compared by PSNR = -10 log₁₀(mean squared error), of colours in [0, 1].

B. Mildenhall et al., NeRF (2020), arXiv 2003.08934, section 5.1; M. Tancik et al., Fourier Features Let Networks Learn
High Frequency Functions in Low Dimensional Domains (2020), arXiv 2006.10739.
"""

from __future__ import annotations

import math

import numpy as np
import page

import fastbp

SKY, SUN, SEA, WHITE = (0.93, 0.55, 0.33), (0.99, 0.87, 0.45), (0.10, 0.32, 0.52), (1.0, 1.0, 1.0)


def coordinates(size: int) -> np.ndarray:
    """(size², 2): x to the right, y down, the middles of the pixels in [-1, 1]."""
    at = (np.arange(size) + 0.5) / size * 2 - 1
    return np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)


def paint(size: int) -> np.ndarray:
    """A picture to learn, (size², 3): a sun over waves, and a boat."""
    x, y = coordinates(size).T
    image = np.tile(SKY, (size * size, 1)) * (0.75 + 0.25 * y)[:, None]
    image[np.hypot(x - 0.3, y + 0.25) < 0.42] = SUN
    sea = y > 0.3 + 0.05 * np.sin(9 * x)
    image[sea] = np.asarray(SEA) * (1.25 + 0.35 * np.sin(40 * y[sea] + 6 * np.sin(4 * x[sea])))[:, None]
    hull = (y > 0.22) & (y < 0.42) & (np.abs(x + 0.4) < 0.34 - 0.8 * (y - 0.22))
    image[hull] = (0.35, 0.16, 0.12)
    image[(y < 0.18) & (x > -0.38) & (x < -0.38 + 0.55 * (y + 0.62))] = WHITE
    image[(y < 0.18) & (x < -0.42) & (x > -0.42 - 0.35 * (y + 0.45))] = WHITE
    return image.clip(0.0, 1.0)


def features(points: np.ndarray, frequencies: int) -> np.ndarray:
    """(n, 2 + 4 · frequencies)."""
    angles = [2.0**k * math.pi * points for k in range(frequencies)]
    return np.hstack([points, *map(np.sin, angles), *map(np.cos, angles)])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


def main(size: int = 96, epochs: int = 60, frequencies: int = 6, out: str | None = None) -> dict[str, float]:
    points, image = coordinates(size), paint(size)
    found, pictures = {}, {"the picture": image}
    for name, count in (("coordinates", 0), ("sines", frequencies)):
        X = features(points, count)
        net = fastbp.MLP([X.shape[1], 64, 64, 3], activation="relu", output="sigmoid", loss="mse", seed=0)
        steps = epochs * -(-len(X) // 128)
        history = net.fit(
            X, image, epochs=epochs, batch_size=128, optimizer=fastbp.optim.Adam(fastbp.optim.CosineDecay(0.005, steps))
        )
        drawn = net.forward(X)
        found[name] = psnr(drawn, image)
        pictures[f"{'coordinates alone' if not count else f'{count} frequencies'}: {found[name]:.1f} dB"] = drawn
        seconds = sum(history.seconds)
        print(f"{name:11}: {X.shape[1]:2} inputs, {net.theta.size} weights, {seconds:.1f} s, PSNR {found[name]:.1f} dB")
    print(f"(the picture itself has {image.size} numbers; a network has no pixels, and can be drawn at any size)")
    if out:
        pictures["the same, four times as large"] = net.forward(features(coordinates(4 * size), frequencies))
        draw(pictures, page.picture(out, "neural_field.png"))
    return found


def draw(pictures: dict[str, np.ndarray], path: object) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 3.5), layout="constrained")
    for axes, (title, image) in zip(figure.subplots(1, len(pictures)), pictures.items(), strict=True):
        size = math.isqrt(len(image))
        axes.imshow(image.reshape(size, size, 3).clip(0, 1), interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    page.run(main)
