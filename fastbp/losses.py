"""Losses as graphs, each with its scaling in its name's row.

=============  ===========================================  =====================  ==============
name           an element or row                            scaling                default output
=============  ===========================================  =====================  ==============
half_sse       (a - t)²/2                                   mean over rows         identity
mse            (a - t)²                                     mean over rows, units  identity
sse            (a - t)²                                     sum over all           identity
mae            |a - t|                                      mean over rows, units  identity
huber          (a - t)²/2 if |a - t| <= 1, |a - t| - 1/2    mean over rows, units  identity
bce            -t log a - (1 - t) log(1 - a)                mean over rows, units  sigmoid
cross_entropy  -Σ t log a over the units of a row           mean over rows         softmax
=============  ===========================================  =====================  ==============

``bce`` and ``cross_entropy`` are computed from the logits z, so that they are finite and exact for any finite z; their
gradient with respect to z is a - t times the scaling. (For cross entropy with a sigmoid output dC/dz is a - t: the
further factor σ′(z) in some lecture notes belongs to the squared error.)

``reduction="sum"`` sums over the rows instead of taking their mean (over units a mean stays one). Sample weights make
the mean over rows a weighted one, divided by the sum of the weights. All are differentiable but for kinks of ``mae``,
where the derivative is taken as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastbp.errors import InputError, unknown
from fastbp.nodes import Node, constant
from fastbp.ops import ONE, N, columns

REDUCTIONS = ("mean", "sum")
_TINY = 1e-37  # a batch whose weights are all 0 has loss and gradient 0, not 0/0


@dataclass(frozen=True)
class Loss:
    """A loss by name.

    Attributes:
        elements: (prediction, target) -> elementwise losses, (n, units).
        logits: whether ``elements`` takes the logits instead of the output.
        output: the output activation that goes with it; the only possible one if ``logits``.
        over_rows: whether rows are averaged. over_units: whether units are.
        factor: of the sum.
    """

    name: str
    elements: Callable[[Node, Node], Node]
    output: str = "identity"
    logits: bool = False
    over_rows: bool = True
    over_units: bool = True
    factor: float = 1.0

    def total(self, prediction: Node, target: Node, weight: Node | None = None, reduction: str = "mean") -> Node:
        """The scaled sum, a (1, 1) node.

        Args:
            prediction: (n, k) logits or outputs, as ``logits`` says.
            target: (n, k).
            weight: (n, 1) sample weights, not negative.
            reduction: "mean" or "sum", over rows.
        """
        elements = self.elements(prediction, target)
        total = (elements if weight is None else elements * weight).sum()
        total = total * (self.factor / columns(prediction.shape) if self.over_units else self.factor)
        if self.averages(reduction):
            total = total * constant(1.0, per=(N, ONE)) if weight is None else total / weight.sum().maximum(_TINY)
        return total

    def __reduce__(self) -> tuple[Callable[[str], Loss], tuple[str]]:
        return get, (self.name,)  # pickled by name: the formulas are functions without one

    def averages(self, reduction: str) -> bool:
        """Whether the loss of a batch is a mean over its rows."""
        return self.over_rows and reduction == "mean"


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("half_sse", lambda a, t: (a - t).square(), over_units=False, factor=0.5),
        Loss("mse", lambda a, t: (a - t).square()),
        Loss("sse", lambda a, t: (a - t).square(), over_rows=False, over_units=False),
        Loss("mae", lambda a, t: (a - t).abs()),
        Loss("huber", lambda a, t: (a - t).huber()),
        Loss("bce", lambda z, t: z.bce_logits(t), "sigmoid", logits=True),
        Loss("cross_entropy", lambda z, t: z.log_softmax() * t, "softmax", logits=True, over_units=False, factor=-1.0),
    )
}


def get(name: str) -> Loss:
    """The loss of that name."""
    if not isinstance(name, str) or name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    return LOSSES[name]


def check_output(loss: Loss, output: str) -> None:
    """Refuse an output activation that a loss on logits does not go with."""
    if loss.logits and output != loss.output:
        raise InputError(f"output={output!r} does not go with loss={loss.name!r}, which needs output={loss.output!r}")


def check_units(loss: Loss, units: int) -> None:
    """Refuse a softmax over one unit, which is 1 whatever comes in."""
    if loss.output == "softmax" and units == 1:
        raise InputError(f"loss={loss.name!r} needs at least two outputs, got layers ending in 1; loss='bce' takes one")


def check_reduction(reduction: str) -> str:
    """The name itself, if it is one."""
    if reduction not in REDUCTIONS:
        raise unknown("reduction", reduction, REDUCTIONS)
    return reduction
