"""Pictures, drawn without a display: loss curves, computational graphs, descents, loss surfaces, decisions, costs.

The colours are those of Okabe and Ito (2008), which colour-blind readers tell apart; what they tell is also said by
line style, marker or text.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastbp import arrays, graph
from fastbp.errors import InputError, missing_extra, unknown
from fastbp.files import replacing
from fastbp.history import History
from fastbp.layered import Network
from fastbp.layout import Layout, Point, layered
from fastbp.network import MLP
from fastbp.nodes import Node, ancestors
from fastbp.ops import ONE, SCALAR
from fastbp.transform import Step as TraceStep
from fastbp.transform import Trace

Array = npt.NDArray[Any]
_BLUE, _VERMILLION, _GREEN, _PURPLE = "#0072B2", "#C24E00", "#009E73", "#B0588F"  # the second and last a shade darker
_COLOURS = (_BLUE, _VERMILLION, _GREEN, "#A87900", _PURPLE, "#3A9BD9", "#000000")


def check(path: str | os.PathLike[str]) -> None:
    """Raise now what drawing to ``path`` would raise later.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the name does not end like a format that matplotlib writes.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise missing_extra("matplotlib", "plots", "Drawing") from error
    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(path).suffix[1:].lower() not in formats:
        raise InputError(f"{path}: a picture's name must end in one of .{', .'.join(formats)}")


def loss_curve(history: History, path: str | os.PathLike[str]) -> None:
    """Draw training and validation loss by epoch; the loss axis is logarithmic where they span more than a decade.

    Args:
        history: of at least one epoch. Where fewer epochs were validated than trained, they are taken as the last.
        path: the picture to write, its format told by the ending (.png, .svg, .pdf, …).

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: no epochs, or an ending that is no format.
    """
    check(path)
    if not history.epochs:
        raise InputError("history has no epochs: there is no loss to draw")
    from matplotlib.figure import Figure  # no pyplot, so that a caller's own figures and backend stay as they are
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    marker = "o" if history.epochs == 1 else None  # a line of one point is invisible
    for label, losses, line in (("training", history.loss, "-"), ("validation", history.validation_loss, "--")):
        if losses:
            first = history.epochs - len(losses) + 1
            axes.plot(range(first, history.epochs + 1), losses, line, label=label, marker=marker)
    if history.best_epoch is not None:
        label = f"kept: epoch {history.best_epoch + 1}"
        axes.axvline(history.best_epoch + 1, color="0.6", linestyle=":", label=label)
    both = history.loss + history.validation_loss
    if min(both) > 0 and max(both) > 10 * min(both):
        axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: str | os.PathLike[str], dpi: float = 150) -> None:
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=dpi)


# ---- computational graphs --------------------------------------------------------------------------------------------


class Step(Protocol):
    """One step of a computation, as :func:`computational_graph` draws it.

    Attributes:
        number: which step it is; the others name it so.
        label: "x", "×", "σ", ….
        inputs: numbers of the earlier steps that it is made of.
        value: 0-d, 1-d or 2-d.
        gradient: of the output with respect to the value; None if it was not asked for.
        edges: what this step adds to the gradient of each input, or None.
    """

    @property
    def number(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def inputs(self) -> tuple[int, ...]: ...
    @property
    def value(self) -> Array: ...
    @property
    def gradient(self) -> Array | None: ...
    @property
    def edges(self) -> tuple[Array | None, ...]: ...


_Word = tuple[str, str]  # a text and its colour


@dataclass(frozen=True)
class _Card:
    """What the box of a step says, and its edges: which cards they come from, and what is written beside them."""

    lines: tuple[tuple[_Word, ...], ...]
    inputs: tuple[int, ...]
    edges: tuple[tuple[str, ...], ...]
    ordered: bool  # exchanging the inputs changes the value


_EM = 0.602  # width of a letter of DejaVu Sans Mono, which matplotlib brings, in sizes
_SIZE, _SMALL, _LINE, _PADDING = 9.0, 8.0, 1.25, 3.5  # points; a line is so many sizes high
_LANE = 6.0  # half the width of an edge: its two arrows lie 2 · 3 apart
_MOST = 400  # steps; more are no picture
_PIXELS, _SIDE = 5e7, 30_000  # of a picture and of its longer side: 200 MB, and what matplotlib's renderer takes
_SYMBOLS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "neg": "−", "matmul": "@", "sigmoid": "σ", "sum": "Σ"}
_SYMBOLS |= {"transpose": "ᵀ", "square": "(·)²", "sqrt": "√", "abs": "|·|", "greater": ">", "equal": "="}
_SYMBOLS |= {"greater_equal": "≥", "power": "^"}
_COMMUTATIVE = ("+", "×", "=", "maximum", "minimum", "max", "min", "add", "mul")


@dataclass(frozen=True)
class _Traced:
    """A step of a :class:`Trace` as a :class:`Step`: labelled as in the trace's table, "v2 = tanh(v1)"."""

    step: TraceStep

    @property
    def label(self) -> str:
        one = self.step
        return one.symbol if one.name in ("input", "constant") else f"{one.symbol} = {one.text}"

    @property
    def edges(self) -> tuple[Any, ...]:
        return tuple(edge.contribution for edge in self.step.edges)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


def computational_graph(
    steps: Trace | Sequence[Step | TraceStep] | Node | Sequence[Node],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    digits: int = 4,
    direction: str | None = None,
) -> None:
    """Draw a computational graph: values flow forward, gradients backward along the same edges.

    A box has a step's label, its value (blue) and the gradient of the output with respect to it (vermillion, after ∂).
    Beside an edge is the part of that gradient which comes back along it; a box's gradient is the sum of those of the
    edges that leave it. Where the order of the inputs matters, as in a − b, they arrive in it from left to right, or
    from top to bottom. Matrices larger than 3 x 3 are given by shape and Euclidean norm. Of nodes only operations and
    shapes are known, and drawn.

    Args:
        steps: what ``fastbp.trace`` gave, or steps of one's own, each after its inputs; or a node of
            :mod:`fastbp.graph`, or several.
        path: the picture to write, its format told by the ending.
        digits: significant digits of the numbers.
        direction: of the forward flow, "right" or "down"; None takes what fits a page better.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: the steps are none, too many, in a wrong order, or hold no numbers; or an ending that is no format.
    """
    check(path)
    digits = arrays.count("digits", digits)
    if direction not in (None, "right", "down"):
        raise unknown("direction", direction, ("right", "down"))
    cards = _cards(steps, digits)
    down, right = _laid_out(cards, down=True), _laid_out(cards, down=False)
    if direction is None:  # a page is about 4 : 3, the long side across
        sides = [max(w / 4, h / 3) for w, h in (down[0].extent, right[0].extent[::-1])]
        direction = "down" if sides[0] < sides[1] else "right"
    _draw_graph(cards, *(down if direction == "down" else right), direction == "down", title, path)


def _cards(steps: Any, digits: int) -> list[_Card]:
    steps = steps.steps if isinstance(steps, Trace) else steps
    given: list[Any] = [steps] if isinstance(steps, Node) else list(steps) if isinstance(steps, Sequence) else []
    given = [_Traced(step) if isinstance(step, TraceStep) else step for step in given]
    if not given:
        raise InputError(f"steps must be a trace, a sequence of at least one step, or a node; got {steps!r}")
    are_nodes = [isinstance(step, Node) for step in given]
    if any(are_nodes) and not all(are_nodes):
        raise InputError("steps must be all nodes or all steps of a trace, got both")
    if are_nodes[0]:
        given = ancestors(given)
    if len(given) > _MOST:
        raise InputError(f"steps are {len(given)}, which no picture can show: at most {_MOST}")
    if are_nodes[0]:
        places = {node.id: k for k, node in enumerate(given)}
        return [_node_card(node, places) for node in given]
    places = {}
    cards = []
    for k, step in enumerate(given):
        missing = [
            name for name in ("number", "label", "inputs", "value", "gradient", "edges") if not hasattr(step, name)
        ]
        if missing:
            raise InputError(f"steps[{k}] has no {', '.join(missing)}: it must be a step of a trace, got {step!r}")
        cards.append(_step_card(step, places, f"steps[{k}]", digits))
        if step.number in places:
            raise InputError(f"steps[{k}].number is {step.number}, which steps[{places[step.number]}] has already")
        places[step.number] = k
    return cards


def _step_card(step: Step, places: Mapping[int, int], name: str, digits: int) -> _Card:
    for number in step.inputs:
        if number not in places:
            raise InputError(f"{name}.inputs names {number!r}, which is no earlier step")
    edges = tuple(step.edges) or (None,) * len(step.inputs)
    if len(edges) != len(step.inputs):
        raise InputError(f"{name}.edges has {len(edges)} entries for {len(step.inputs)} inputs")
    value = _written(f"{name}.value", step.value, digits)
    gradient = () if step.gradient is None else _written(f"{name}.gradient", step.gradient, digits, "∂ ")
    head = ((f" = {value[0]}", _BLUE),) if len(value) == 1 else ()
    below = [((line, _BLUE),) for line in value if not head] + [((line, _VERMILLION),) for line in gradient]
    return _Card(
        (((" ".join(str(step.label).split()), "black"), *head), *below),
        tuple(places[number] for number in step.inputs),
        tuple(() if e is None else _written(f"{name}.edges[{k}]", e, digits) for k, e in enumerate(edges)),
        len(step.inputs) > 1 and getattr(step, "name", step.label) not in _COMMUTATIVE,
    )


def _node_card(node: Node, places: Mapping[int, int]) -> _Card:
    attrs, title = node.attrs, _SYMBOLS.get(node.op, node.op)
    if node.op in ("input", "param"):
        title = node.name
    elif node.op == "const":
        per = [f"/{size}" for size in attrs["per"] or () if size != ONE]
        title = _number(attrs["value"], 6) + "".join(per)
    elif node.op == "view":
        title = f"[{attrs['offset']}:{attrs['offset'] + attrs['rows'] * attrs['cols']}]"
    elif node.op == "matmul":
        title = f"{'ᵀ' * attrs['ta']}@{'ᵀ' * attrs['tb']}"
    elif attrs.get("axis") is not None:
        title += (" of columns", " of rows")[attrs["axis"]]
    shape = () if node.shape == SCALAR else ((" " + "×".join(map(str, node.shape)), "0.4"),)
    inputs = tuple(places[i.id] for i in node.inputs)
    ordered = len(inputs) > 1 and title not in _COMMUTATIVE
    return _Card((((title, "black"), *shape),), inputs, ((),) * len(inputs), ordered)


def _written(name: str, value: Any, digits: int, mark: str = "") -> tuple[str, ...]:
    """The lines that show an array: its numbers, or shape and norm if there are many."""
    array = arrays.asarray(name, value, "an array of numbers of at most two dimensions")
    if array.dtype.kind not in "biuf" or array.ndim > 2:
        what = f"shape {array.shape}, dtype {array.dtype}"
        raise InputError(f"{name} must be an array of numbers of at most two dimensions; got {what}")
    if array.size == 1:
        return (mark + _number(array.item(), digits),)
    if array.size and max(array.shape) <= 3:
        cells = [[_number(x, digits) for x in row] for row in np.atleast_2d(array).tolist()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = [f"[{' '.join(map(str.rjust, row, widths))}]" for row in cells]
        return tuple((mark if not k else " " * len(mark)) + row for k, row in enumerate(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        norm = float(np.linalg.norm(array.astype(np.float64)))
    return (mark + "×".join(map(str, array.shape)), f"‖·‖ {_number(norm, digits)}")


def _number(x: float, digits: int) -> str:
    return f"{x + 0.0:.{digits}g}".replace("-", "−")  # + 0.0: no −0


def _block(lines: Sequence[str], size: float) -> Point:
    """Width and height of some lines, in points."""
    return max((_EM * size * len(line) for line in lines), default=0.0), _LINE * size * len(lines)


def _laid_out(cards: Sequence[_Card], down: bool) -> tuple[Layout, list[Point]]:
    """The layout, and width and height of the boxes."""
    sizes = []
    consumers = np.bincount([i for card in cards for i in card.inputs], minlength=len(cards))
    for card, out in zip(cards, consumers, strict=True):
        width, height = _block(["".join(word for word, _ in words) for words in card.lines], _SIZE)
        width, height = width + 2 * _PADDING + 2, height + 2 * _PADDING
        room = 2 * _LANE * max(len(card.inputs), out, 2)  # for every edge
        sizes.append((max(width, room), height) if down else (max(width, 24.0), max(height, room)))
    edges = [(source, k) for k, card in enumerate(cards) for source in card.inputs]
    labels = [_block(lines, _SMALL) if lines else None for card in cards for lines in card.edges]
    layout = layered(
        sizes if down else [size[::-1] for size in sizes],
        edges,
        labels if down else [label and label[::-1] for label in labels],
        in_order=[card.ordered for card in cards],
        apart=(12.0, 9.0 if any(labels) else 14.0),
        lane=_LANE,
        port=2.4 * _LANE,
    )
    return layout, sizes


def _draw_graph(
    cards: Sequence[_Card],
    layout: Layout,
    sizes: Sequence[Point],
    down: bool,
    title: str | None,
    path: str | os.PathLike[str],
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon
    from matplotlib.path import Path as Curve

    def at(point: Point) -> Point:
        return point if down else point[::-1]

    backward = any(any(card.edges) for card in cards)
    legend = [("value, forward", _BLUE, "-"), ("gradient of the output, backward", _VERMILLION, "--")] * backward
    margin, head, foot = 9.0, 22.0 * bool(title), (8.0 + 13.0 * len(legend)) * backward
    drawn = at(layout.extent)
    inner = max(drawn[0], _block([title or ""], 11)[0], _block([entry for entry, *_ in legend], _SMALL)[0] + 28)
    width, height = inner + 2 * margin, drawn[1] + head + foot + 2 * margin
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    left, top = -margin - (inner - drawn[0]) / 2, -margin - head
    axes.set(xlim=(left, left + width), ylim=(top + height, top))  # points, y downward, the layout's (0, 0) at (0, 0)
    axes.set_axis_off()
    font: dict[str, Any] = {
        "family": "DejaVu Sans Mono",
        "parse_math": False,
        "linespacing": _LINE / 1.164,
    }  # in lines of that font

    def write(x: float, y: float, line: str, size: float, colour: str, **more: Any) -> None:
        axes.text(x, y, line, fontsize=size, color=colour, **font | more)

    def arrow(route: Sequence[Point], aside: float, colour: str, style: str) -> None:
        """Straight and curved pieces in turns, see ``Layout``, moved aside; the end is always along."""
        points = [(x + aside, y) for x, y in route]
        (x, end), way = points[-1], 1 if points[-1][1] > points[0][1] else -1
        vertices, codes = [points[0]], [Curve.MOVETO]
        for k, (a, b) in enumerate(itertools.pairwise(points)):
            steep = (b[0] - a[0]) / (b[1] - a[1]) if b[1] != a[1] else 0.0
            half = (a[1] + b[1]) / 2 - aside * max(-1.0, min(1.0, steep))  # the two arrows of an edge stay apart
            vertices += [b] if k % 2 == 0 else [(a[0], half), (b[0], half), b]
            codes += [Curve.LINETO] if k % 2 == 0 else [Curve.CURVE4] * 3
        look = {"linewidth": 1.0, "linestyle": style, "edgecolor": colour, "facecolor": "none", "zorder": 1}
        axes.add_patch(PathPatch(Curve([at(p) for p in vertices], codes), capstyle="butt", **look))
        tip = [(x, end), (x - 2.4, end - 6.5 * way), (x + 2.4, end - 6.5 * way)]
        axes.add_patch(Polygon([at(p) for p in tip], facecolor=colour, edgecolor="none", zorder=1.5))

    routes, labels = iter(layout.routes), iter(layout.labels)
    for lines in (lines for card in cards for lines in card.edges):
        route, place = next(routes), next(labels)
        aside = 3.0 if place else 0.0
        arrow(route, -aside, _BLUE if backward else "0.35", "-")
        if place:
            arrow(route[::-1], aside, _VERMILLION, "--")
            aligned: dict[str, Any] = {"ha": "left", "va": "center"} if down else {"ha": "center", "va": "top"}
            write(*at(place), "\n".join(lines), _SMALL, _VERMILLION, **aligned)
    for card, centre, (wide, high) in zip(cards, layout.nodes, sizes, strict=True):
        x, y = at(centre)
        shape = f"round,pad=0,rounding_size={6 if card.inputs else 1.5}"
        box: dict[str, Any] = {
            "facecolor": "white" if card.inputs else "#EEEEEE",
            "edgecolor": "0.3",
            "linewidth": 0.9,
            "zorder": 2,
        }
        axes.add_patch(FancyBboxPatch((x - wide / 2, y - high / 2), wide, high, boxstyle=shape, **box))
        for k, words in enumerate(card.lines):
            base = y + (k - (len(card.lines) - 1) / 2) * _LINE * _SIZE + 0.36 * _SIZE
            begin = x - _EM * _SIZE * sum(len(word) for word, _ in words) / 2
            for word, colour in words:
                write(begin, base, word, _SIZE, colour, weight="bold" if colour == "black" else "normal")
                begin += _EM * _SIZE * len(word)
    if title:
        write(left + width / 2, -head, title, 11, "black", family="DejaVu Sans", ha="center", va="center")
    for k, (entry, colour, style) in enumerate(legend, 1):
        x, y = left + margin, drawn[1] + 8.0 + 13.0 * (k - 0.5)
        ends = [(x, y), (x + 22, y)][:: 1 if style == "-" else -1]
        axes.add_line(Line2D(*zip(*ends, strict=True), color=colour, linestyle=style, linewidth=1.0))
        way = 6.5 if style == "-" else -6.5
        tip = [ends[1], (ends[1][0] - way, y - 2.4), (ends[1][0] - way, y + 2.4)]
        axes.add_patch(Polygon(tip, facecolor=colour, edgecolor="none"))
        write(x + 28, y, entry, _SMALL, colour, va="center_baseline")
    dpi = min(150.0, 72 * _SIDE / max(width, height), 72 * (_PIXELS / (width * height)) ** 0.5)
    _save(figure, path, dpi)


# ---- descents --------------------------------------------------------------------------------------------------------

Function = Callable[[Array], tuple[Any, Any]]  # two parameters (2,) to loss and gradient (2,)


@dataclass(frozen=True)
class Descent:
    """What :func:`descend` went through.

    Attributes:
        points: (k + 1, 2), the start first; all finite.
        losses: (k + 1,) at those points.
        asked: the steps that were asked for; k is less where loss, gradient or step were not finite any more.
    """

    learning_rate: float
    points: Array
    losses: Array
    asked: int

    @property
    def diverges(self) -> bool:
        """Whether it ended early, or higher than it began."""
        return len(self.losses) <= self.asked or bool(self.losses[-1] > self.losses[0])


def two_parameters(loss: Node, values: Mapping[str, Any] | None = None) -> Function:
    """Loss and gradient of a graph with two parameters in all, as a function of them, (2,).

    Args:
        loss: a (1, 1) node made of one param of two elements, or two of one, and of inputs.
        values: the inputs by name.

    Raises:
        InputError: another number of parameters, or not a scalar.
    """
    if not isinstance(loss, Node) or loss.shape != SCALAR:
        raise InputError(f"loss must be a (1, 1) node, got {loss!r}; take .sum() or .mean() first")
    params = [node for node in ancestors([loss]) if node.op == "param"]
    shapes = [tuple(size.fixed for size in p.shape) for p in params]
    if sum(rows * cols for rows, cols in shapes) != 2:
        raise InputError(f"loss must depend on two parameters in all, got {params}")
    compiled = graph.compile([loss, *graph.gradients(loss, params)], inputs=params)
    given = dict(values or {})

    def function(w: Array) -> tuple[Any, Array]:
        parts = [w.reshape(shapes[0])] if len(params) == 1 else [w[:1, None], w[1:, None]]
        value, *gradient = compiled(**given, **{p.name: part for p, part in zip(params, parts, strict=True)})
        return value, np.concatenate([np.ravel(g) for g in gradient])

    return function


def descend(function: Function, start: Any, learning_rate: float, steps: int) -> Descent:
    """Gradient descent w ← w - ε ∇J(w), for so many steps or until something is not finite."""
    rate, steps = arrays.positive("learning_rate", learning_rate), arrays.count("steps", steps)
    point = _pair("start", start)
    points: list[Array] = []
    losses: list[float] = []
    with np.errstate(over="ignore", invalid="ignore"):  # a descent that diverges does so
        while len(points) <= steps:
            loss, gradient = function(point.copy())
            if not (np.isfinite(loss) and np.isfinite(point).all()):
                break
            points.append(point)
            losses.append(float(loss))
            if np.shape(gradient) != (2,):
                raise InputError(f"function must return the loss and a gradient (2,), got shape {np.shape(gradient)}")
            point = point - rate * np.asarray(gradient, np.float64)
    if not points:
        raise InputError(f"start must be where the loss is finite, got {start!r}")
    return Descent(rate, np.array(points), np.array(losses), steps)


def descent(
    function: Node | Function,
    path: str | os.PathLike[str],
    *,
    start: Any,
    learning_rates: Sequence[float],
    steps: int = 30,
    values: Mapping[str, Any] | None = None,
    names: tuple[str, str] | None = None,
    title: str | None = None,
) -> None:
    """Draw gradient descent on a loss of two parameters, one panel a learning rate, and the losses by step below.

    The rate that ends lowest is called right, smaller ones too small, larger ones too large. A run that leaves its
    panel ends there in an arrow, with the step; a run that diverges also leaves the panel of the losses.

    Args:
        function: a (1, 1) node with two parameters in all, see :func:`two_parameters`; or a function of an array (2,)
            that returns loss and gradient.
        path: the picture to write, its format told by the ending.
        start: two numbers, where every run begins.
        learning_rates: one to four.
        values: the inputs of the node by name.
        names: of the two parameters.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: a wrong argument, or an ending that is no format.
    """
    check(path)
    if isinstance(learning_rates, (str, float, int)) or not 1 <= len(learning_rates) <= 4:
        raise InputError(f"learning_rates must be one to four numbers, got {learning_rates!r}")
    if isinstance(function, Node):
        params = [node.name for node in ancestors([function]) if node.op == "param"]
        function = two_parameters(function, values)
        names = names or (
            (params[0], params[1]) if len(params) == 2 else (f"{params[0]}, first", f"{params[0]}, second")
        )
    elif not callable(function):
        raise InputError(f"function must be a node or a function of two parameters, got {function!r}")
    runs = [descend(function, start, rate, steps) for rate in learning_rates]
    _draw_descents(function, runs, names or ("first parameter", "second parameter"), title, path)


def _draw_descents(
    function: Function, runs: Sequence[Descent], names: tuple[str, str], title: str | None, path: str | os.PathLike[str]
) -> None:
    from matplotlib.figure import Figure

    low, high = _frame(runs)
    grid = [np.linspace(low[k], high[k], 81) for k in (0, 1)]
    with np.errstate(over="ignore", invalid="ignore"):
        heights = np.array([[float(function(np.array([x, y]))[0]) for x in grid[0]] for y in grid[1]])
    finite = heights[np.isfinite(heights)]
    levels = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, 15))) if finite.size else finite  # dense everywhere

    figure = Figure(figsize=(max(3.4 * len(runs), 5.0), 6.0), layout="constrained")
    panels: dict[str, Any] = figure.subplot_mosaic(
        [[f"{k}" for k in range(len(runs))], ["loss"] * len(runs)], height_ratios=(1.45, 1)
    )
    below = panels["loss"]
    top = _loss_axis(below, runs)
    for k, (run, verdict) in enumerate(zip(runs, _verdicts(runs), strict=True)):
        axes, colour = panels[f"{k}"], _COLOURS[(1, 2, 0, 4)[k]]
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=names[0])
        if k == 0:
            axes.set_ylabel(names[1])
        else:
            axes.set_yticklabels([])
        axes.set_title(f"ε = {run.learning_rate:g}: {verdict}", fontsize="medium", color=colour)
        if len(levels) > 1:
            axes.contourf(*grid, heights, levels=levels, cmap="Greys", alpha=0.45)
            axes.contour(*grid, heights, levels=levels, colors="0.45", linewidths=0.5)
        _draw_path(axes, run, low, high, colour)
        style = ("-", "--", "-.", ":")[k]
        ending = f" ({run.losses[-1]:.3g} after {len(run.losses) - 1} steps)"
        label = f"ε = {run.learning_rate:g}, {verdict}{ending * run.diverges}"
        below.plot(
            np.minimum(run.losses, 10 * abs(top)),
            style,
            color=colour,
            label=label,
            marker="." if len(run.losses) < 60 else None,
        )
    below.set(xlabel="step", ylabel="loss")
    below.grid(alpha=0.25)
    below.spines[["top", "right"]].set_visible(False)
    below.legend(frameon=False, fontsize="small")
    if title:
        figure.suptitle(title)
    _save(figure, path)


def _frame(runs: Sequence[Descent]) -> tuple[Array, Array]:
    """The corners of what is shown: the runs that stay and the start's reflection in where the best one ends.

    If none stays, the first step of each; in any case with a margin.
    """
    staying = [run for run in runs if not run.diverges]
    points = [run.points[: 1 if staying else 2] if run.diverges else run.points for run in runs]
    if staying:
        best = min(staying, key=lambda run: float(run.losses[-1]))
        points.append(2 * best.points[-1:] - best.points[:1])  # a valley is seen from both sides
    low, high = np.concatenate(points).min(axis=0), np.concatenate(points).max(axis=0)
    width = np.maximum(high - low, 1e-3 * (1.0 + np.abs(high)))
    margin = 0.15 * np.maximum(width, 0.2 * width.max())  # nor a slit where one parameter hardly moves
    return low - margin, high + margin


def _verdicts(runs: Sequence[Descent]) -> list[str]:
    staying = [run for run in runs if not run.diverges]
    best = min(staying, key=lambda run: float(run.losses[-1])).learning_rate if staying else 0.0
    words = [
        "too small" if r.learning_rate < best else "right" if r.learning_rate == best else "too large" for r in runs
    ]
    return ["too large, diverges" if run.diverges else word for run, word in zip(runs, words, strict=True)]


def _draw_path(axes: Any, run: Descent, low: Array, high: Array, colour: str) -> None:
    outside = ((run.points < low) | (run.points > high)).any(axis=1)
    last = int(np.argmax(outside)) if outside.any() else len(run.points)  # the first one outside
    inside = run.points[:last]
    axes.plot(*inside.T, color=colour, linewidth=1.3, marker="o", markersize=3)
    axes.plot(
        *run.points[0], color=colour, marker="o", markersize=8, markerfacecolor="white", markeredgewidth=1.5, zorder=6
    )
    if last == len(run.points):
        axes.plot(*run.points[-1], color=colour, marker="*", markersize=11, markeredgecolor="white")
        return
    begin, end = inside[-1], run.points[last]
    with np.errstate(divide="ignore", invalid="ignore"):
        to_border = np.where(end > high, (high - begin) / (end - begin), (low - begin) / (end - begin))
    leaves = (end > high) | (end < low)
    edge = begin + (end - begin) * to_border[leaves].min()
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "mutation_scale": 16, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", edge, begin, arrowprops=look, zorder=5)
    way = np.linspace(0.0, len(inside), 20 * len(inside) + 1)
    drawn = [
        np.interp(way, np.arange(len(inside) + 1), (p - lo) / (hi - lo))
        for p, lo, hi in zip(np.vstack([inside, edge]).T, low, high, strict=True)
    ]
    corners = [(0.04, 0.05), (0.96, 0.05), (0.04, 0.95), (0.96, 0.95)]
    x, y = max(corners, key=lambda c: float(np.hypot(drawn[0] - c[0], drawn[1] - c[1]).min()))  # out of the way
    aligned = {"ha": "left" if x < 0.5 else "right", "va": "bottom" if y < 0.5 else "top"}
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour, "alpha": 0.9}
    note = f"leaves at step {last}"
    axes.text(x, y, note, transform=axes.transAxes, fontsize="small", color=colour, bbox=box, **aligned)


def _loss_axis(axes: Any, runs: Sequence[Descent]) -> float:
    """Logarithmic where the losses span a decade; what diverges leaves at the top, which is returned."""
    losses = np.concatenate([run.losses for run in runs])
    begin = max(float(run.losses[0]) for run in runs)
    bottom, top = float(losses.min()), float(losses.max())
    if bottom > 0 and top > 10 * bottom:
        top = 2 * min(top, 100 * begin)
        axes.set_ylim(max(bottom, 1e-12 * begin) / 2, top)
        axes.set_yscale("log")
    else:
        room = max(begin - bottom, 1e-3 * abs(begin)) or 1.0
        top = min(top, begin + room) + 0.05 * room
        axes.set_ylim(bottom - 0.05 * room, top)
    return top


def _pair(name: str, value: Any) -> Array:
    array = arrays.asarray(name, value, "two finite numbers")
    if array.dtype.kind not in "biuf" or array.shape != (2,) or not np.isfinite(array).all():
        raise InputError(f"{name} must be two finite numbers, got {value!r}")
    return array.astype(np.float64)


# ---- loss surfaces ---------------------------------------------------------------------------------------------------


def filter_normalised_directions(net: Network, seed: int = 0) -> tuple[Array, Array]:
    """Two random directions in the space of theta, (P,) float64 each, after Li et al. (2017, arXiv 1712.09913).

    Normal numbers; then the incoming weights of every unit are scaled to the norm that they have in the network:
    d ← d · ‖w‖/‖d‖ for each column of each weight matrix, skip connections' too. Biases stay as they are: their
    direction is 0. So a step of 1 disturbs every unit as much as its weights are large, and networks of different
    scales can be compared.
    """
    rng = np.random.default_rng(arrays.count("seed", seed, 0))
    found = []
    for _ in range(2):
        direction = np.zeros(net.theta.shape)
        for part, weights in zip(net.views(direction).values(), net.views().values(), strict=True):
            if weights.ndim < 2:  # a bias
                continue
            part[...] = rng.normal(size=part.shape)
            part *= np.linalg.norm(weights.astype(np.float64), axis=0) / np.linalg.norm(part, axis=0)
        found.append(direction)
    return found[0], found[1]


def surface_values(
    net: Network, X: Any, T: Any, *, size: float = 1.0, points: int = 41, seed: int = 0
) -> tuple[Array, Array]:
    """The loss at theta + a d₁ + b d₂, with the directions of :func:`filter_normalised_directions`.

    Args:
        X, T: as for ``net.loss``.
        size: a and b go from -size to size.
        points: how many each takes, odd, so that the network itself is in the middle.

    Returns:
        The coordinates, (points,), and the losses, (points, points): row b, column a. The network is not touched.
    """
    size, points = arrays.positive("size", size), arrays.count("points", points, 3)
    if points % 2 == 0:
        raise InputError(f"points must be odd, so that the network itself is one of them, got {points}")
    first, second = filter_normalised_directions(net, seed)
    at = np.arange(-(points // 2), points // 2 + 1) * (size / (points // 2))  # the middle is 0 exactly
    moved, theta = copy.deepcopy(net), net.theta.astype(np.float64)
    losses = np.empty((points, points))
    with np.errstate(over="ignore"):
        for row, b in enumerate(at):
            for column, a in enumerate(at):
                moved.theta = theta + a * first + b * second
                losses[row, column] = moved.loss(X, T)
    return at, losses


def loss_surface(
    net: Network,
    X: Any,
    T: Any,
    path: str | os.PathLike[str],
    *,
    size: float = 1.0,
    points: int = 41,
    seed: int = 0,
    title: str | None = None,
) -> None:
    """Draw the loss around a network in two random filter-normalised directions, as contours and as a surface.

    The heights are logarithmic where they span more than a factor of five. Arguments as in :func:`surface_values`.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: a wrong argument, a loss that is nowhere finite, or an ending that is no format.
    """
    check(path)
    at, losses = surface_values(net, X, T, size=size, points=points, seed=seed)
    if not np.isfinite(losses).any():
        raise InputError("net has no finite loss anywhere around its parameters: there is no surface to draw")
    losses[~np.isfinite(losses)] = np.nan
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    low, high = float(np.nanmin(losses)), float(np.nanmax(losses))
    decades = low > 0 and high > 5 * low
    heights = np.log10(losses) if decades else losses
    figure = Figure(figsize=(10.0, 4.6), layout="constrained")
    flat, solid = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2, projection="3d")
    scale = {"cmap": "viridis", "vmin": np.nanmin(heights), "vmax": np.nanmax(heights)}
    if high > low:
        levels = MaxNLocator(14).tick_values(scale["vmin"], scale["vmax"])
        flat.contourf(at, at, heights, levels=levels, **scale)
        lines = flat.contour(at, at, heights, levels=levels, colors="white", linewidths=0.6, linestyles="solid")
        flat.clabel(lines, levels[::2], fmt=lambda h: f"{10**h if decades else h:.3g}", fontsize=7)
    centre = float(losses[len(at) // 2, len(at) // 2])
    flat.plot(0, 0, "*", color="white", markersize=13, markeredgecolor="black", label=f"the network, {centre:.4g}")
    flat.set(xlabel="a", ylabel="b", aspect="equal", title="loss at θ + a d₁ + b d₂" + ", logarithmic" * decades)
    flat.legend(loc="upper right", fontsize="small", framealpha=0.9)
    solid.plot_surface(*np.meshgrid(at, at), heights, rstride=1, cstride=1, linewidth=0.1, edgecolor="0.3", **scale)
    solid.set(xlabel="a", ylabel="b")
    solid.set_box_aspect((1, 1, 0.75), zoom=0.95)
    solid.view_init(elev=35, azim=-60)
    for axis in (flat.xaxis, flat.yaxis, solid.xaxis, solid.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    solid.zaxis.set_major_locator(MaxNLocator(6))
    if decades:
        solid.zaxis.set_major_formatter(lambda h, _: f"{10**h:.3g}")
    if title:
        figure.suptitle(title)
    _save(figure, path)


# ---- decisions -------------------------------------------------------------------------------------------------------


def decision_boundary(
    net: MLP,
    X: Any,
    labels: Any,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> None:
    """Draw what a network of two inputs decides where, with the points that it should decide on.

    A region's colour is its class, the deeper the surer the network; black lines are the boundaries. Of one output,
    the class is whether it is at least 0.5; of several, the largest. Rings mark points that are decided wrongly.

    Args:
        X: (n, 2), n at least 1.
        labels: (n,) or (n, 1) whole numbers: 0 or 1 for one output, else below the number of outputs.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: not two inputs, more than seven classes, wrong shapes or labels; or an ending that is no format.
    """
    check(path)
    if net.layers[0] != 2:
        raise InputError(f"net must have two inputs to be drawn, got layers={list(net.layers)}")
    classes = max(2, net.layers[-1])
    if classes > len(_COLOURS):
        raise InputError(f"net must have at most {len(_COLOURS)} classes to be drawn, got {classes}")
    x = arrays.matrix("X", X, 2, np.float64)
    if not len(x):
        raise InputError("X has no rows: there are no points to draw")
    arrays.finite("X", x)
    given = arrays.asarray("labels", labels, "(n,) whole numbers")
    if given.dtype.kind not in "biu" or given.ndim not in (1, 2) or given.shape[1:] not in ((), (1,)):
        raise InputError(f"labels must be (n,) whole numbers; got shape {given.shape}, dtype {given.dtype}")
    arrays.same_rows("labels", given, len(x), "X")
    truth = arrays.labels("labels", given, classes)[:, 0]
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    low, high = x.min(axis=0), x.max(axis=0)
    margin = 0.1 * np.maximum(high - low, 1e-3 * (1.0 + np.abs(high)))
    grid = [np.linspace(low[k] - margin[k], high[k] + margin[k], 241) for k in (0, 1)]
    every = np.stack(np.meshgrid(*grid), axis=-1)
    outputs = _outputs(net, every.reshape(-1, 2))
    decided, even = outputs.argmax(axis=1), 1.0 / classes
    sure = np.clip(np.nan_to_num((outputs.max(axis=1) - even) / (1.0 - even)), 0.0, 1.0)
    colours = np.array([to_rgb(colour) for colour in _COLOURS[:classes]])
    shade = (0.12 + 0.48 * sure)[:, None]
    image = (1 - shade) + shade * colours[decided]

    figure = Figure(figsize=(6.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    extent = (grid[0][0], grid[0][-1], grid[1][0], grid[1][-1])
    shape = every.shape[:2]
    axes.imshow(image.reshape(*shape, 3), extent=extent, origin="lower", aspect="auto", interpolation="bilinear")
    for k in range(classes):
        ahead = outputs[:, k] - np.delete(outputs, k, axis=1).max(axis=1)  # of all others
        if ahead.min() < 0 < ahead.max():
            axes.contour(*grid, ahead.reshape(shape), levels=[0.0], colors="black", linewidths=1.0)
    found = _outputs(net, x)
    wrong = (found[:, 1] >= found[:, 0] if net.layers[-1] == 1 else found.argmax(axis=1)) != truth
    size = 34.0 if len(x) <= 300 else 12.0
    for k in np.unique(truth):
        mine, marker = truth == k, "osD^vP*"[k]
        look: dict[str, Any] = {"color": _COLOURS[k], "edgecolors": "white", "linewidths": 0.7, "label": f"class {k}"}
        axes.scatter(x[mine, 0], x[mine, 1], s=size, marker=marker, zorder=3, **look)
    if wrong.any():
        label = f"wrong: {wrong.sum()} of {len(x)}"
        rings: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "zorder": 4, "label": label}
        axes.scatter(x[wrong, 0], x[wrong, 1], s=2.5 * size, **rings)
    axes.set(xlabel="$x_1$", ylabel="$x_2$", xlim=extent[:2], ylim=extent[2:])
    figure.legend(loc="outside right upper", frameon=False, markerscale=(34.0 / size) ** 0.5)
    if title:
        axes.set_title(title)
    _save(figure, path)


def _outputs(net: MLP, X: Array) -> Array:
    """(n, classes): the outputs, or 1 - p and p of a single one."""
    outputs = net.forward(X).astype(np.float64)
    return np.hstack([1.0 - outputs, outputs]) if outputs.shape[1] == 1 else outputs


# ---- costs -----------------------------------------------------------------------------------------------------------


class Cost(Protocol):
    """What one network costs, as a row of :func:`fastbp.measure.run` says it; times in µs."""

    @property
    def parameters(self) -> int: ...
    @property
    def loss_call_us(self) -> float: ...
    @property
    def gradient_call_us(self) -> float: ...
    @property
    def naive_us(self) -> float: ...
    @property
    def naive_extrapolated(self) -> bool: ...
    @property
    def ratio(self) -> float: ...
    @property
    def ratio_products(self) -> float: ...


def cost_chart(costs: Sequence[Cost], path: str | os.PathLike[str], *, title: str | None = None) -> None:
    """Draw what a gradient costs by the number of parameters: by backpropagation, and by one forward pass for each.

    Above, the time of a call of ``loss``, of ``loss_and_grad`` and of the naive gradient; hollow where it would take
    too long and is extrapolated, (parameters + 1) · the time of ``loss``. Below, the time of the backward pass by that
    of the forward pass, both without Python's share of a call, and what the products alone would make it.

    Args:
        costs: at least two rows, such as ``fastbp.measure.run(fastbp.measure.GROWING).rows``, of one backend.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: fewer rows, or an ending that is no format.
    """
    check(path)
    if not isinstance(costs, Sequence) or len(costs) < 2 or not all(hasattr(row, "naive_us") for row in costs):
        raise InputError(f"costs must be at least two rows of a measurement, got {costs!r}")
    rows = sorted(costs, key=lambda row: row.parameters)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    x = [row.parameters for row in rows]
    above.plot(x, [row.naive_us for row in rows], "--", color=_VERMILLION, linewidth=1)
    for extrapolated, face in ((False, _VERMILLION), (True, "white")):
        chosen = [row for row in rows if row.naive_extrapolated == extrapolated]
        if chosen:
            y = [row.naive_us for row in chosen]
            label = "naive gradient, a forward pass a parameter" + ", extrapolated" * extrapolated
            look = {"color": _VERMILLION, "markerfacecolor": face}
            above.plot([row.parameters for row in chosen], y, "s", label=label, **look)
    above.plot(
        x, [row.gradient_call_us for row in rows], "^-", color=_GREEN, label="loss and gradient, backpropagation"
    )
    above.plot(x, [row.loss_call_us for row in rows], "o-", color=_BLUE, label="loss, forward")
    above.set(xscale="log", yscale="log", ylabel="time of a call, µs")
    below.plot(x, [row.ratio for row in rows], "o-", color="black", label="measured")
    below.plot(x, [row.ratio_products for row in rows], ":", color="0.35", label="theory, products: 2 − P₁/ΣP")
    highest = [max(row.ratio, row.ratio_products) for row in rows]
    below.set(xlabel="parameters", ylabel="backward / forward", ylim=(0, 1.3 * max(highest)))
    for axes in (above, below):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    if title:
        figure.suptitle(title)
    _save(figure, path)
