"""How weights start."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# name: what the weights are drawn from, with its source
INITS = {
    "glorot": "uniform, ±√(6/(fan_in + fan_out)) (Glorot and Bengio 2010)",
    "he": "normal, variance 2/fan_in (He et al. 2015)",
    "lecun": "normal, variance 1/fan_in (LeCun et al. 1998)",
    "normal": "normal, variance 1, the biases too (Nielsen 2015)",
    "zeros": "zeros",
}
_OF_ACTIVATION = {"relu": "he", "leaky_relu": "he", "gelu": "he", "silu": "he"}


def default(activation: str) -> str:
    """The initialisation that goes with an activation: he for relu and its kin, glorot otherwise."""
    return _OF_ACTIVATION.get(activation, "glorot")


def layer(name: str, rng: np.random.Generator, fan_in: int, fan_out: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Weights (fan_in, fan_out) and bias (fan_out,) in float64; a bias starts at 0 but for "normal"."""
    shape = (fan_in, fan_out)
    bias = np.zeros(fan_out)
    match name:
        case "glorot":
            limit = (6.0 / (fan_in + fan_out)) ** 0.5
            return rng.uniform(-limit, limit, shape), bias
        case "he":
            return rng.normal(0.0, (2.0 / fan_in) ** 0.5, shape), bias
        case "lecun":
            return rng.normal(0.0, fan_in**-0.5, shape), bias
        case "normal":
            return rng.standard_normal(shape), rng.standard_normal(fan_out)
    return np.zeros(shape), bias
