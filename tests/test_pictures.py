"""Pictures: what is written on them, the numbers behind them, what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import fastbp
from fastbp import MLP, graph, measure, pictures
from fastbp.errors import InputError
from fastbp.pictures import Descent


@dataclass(frozen=True)
class Step:
    number: int
    label: str
    inputs: tuple[int, ...]
    value: Any
    gradient: Any = None
    edges: tuple[Any, ...] = ()


def product_and_sum() -> list[Step]:
    """x y + z at 2, -3, 10."""
    return [
        Step(0, "x", (), np.array(2.0), np.array(-3.0)),
        Step(1, "y", (), np.array(-3.0), np.array(2.0)),
        Step(2, "z", (), np.array(10.0), np.array(1.0)),
        Step(3, "×", (0, 1), np.array(-6.0), np.array(1.0), (np.array(-3.0), np.array(2.0))),
        Step(4, "+", (3, 2), np.array(4.0), np.array(1.0), (np.array(1.0), np.array(1.0))),
    ]


def sigmoid_net() -> list[Step]:
    """A 2-2-1 net of sigmoids with long numbers; the gradients are any."""
    rng = np.random.default_rng(0)
    steps: list[Step] = []

    def step(label: str, *inputs: Step) -> Step:
        gradient = np.array(rng.normal() / 1000)
        edges = tuple(np.array(rng.normal() / 1000) for _ in inputs)
        steps.append(Step(len(steps), label, tuple(i.number for i in inputs), np.array(rng.normal()), gradient, edges))
        return steps[-1]

    a = [step("x₁"), step("x₂")]
    for units in (2, 1):
        a = [step("σ", step("+", step("+", *(step("×", step("w"), x) for x in a)), step("b"))) for _ in range(units)]
    step("square", step("−", a[0], step("y")))
    return steps


@pytest.fixture
def drawn(monkeypatch, tmp_path) -> list[Figure]:
    """The figures that were drawn, in a folder of their own; the files are empty."""
    monkeypatch.chdir(tmp_path)
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: figures.append(self))
    return figures


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def extents(figure: Figure) -> list[Any]:
    """Where the texts lie on the page, at the resolution at which it is saved: letters are as wide as whole pixels."""
    figure.set_dpi(150)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    return [text.get_window_extent() for axes in figure.axes for text in axes.texts]


def data(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 2))
    return X, (X[:, 0] * X[:, 1] > 0).astype(np.int64)


def trained(**options: Any) -> MLP:
    net = MLP([2, 8, 1], activation="tanh", loss="bce", seed=0, **options)
    X, labels = data()
    net.fit(X, labels[:, None].astype(float), epochs=30, batch_size=10)
    return net


def test_importing_does_not_load_matplotlib() -> None:
    program = "import sys, fastbp; fastbp.pictures; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- files -----------------------------------------------------------------------------------------------------------


def descents(path: Path) -> None:
    pictures.descent(quadratic(), path, start=(-4.0, 1.5), learning_rates=(0.01, 0.15, 0.25))


DRAWINGS = {
    "computational_graph": lambda path: pictures.computational_graph(product_and_sum(), path, title="x y + z"),
    "descent": descents,
    "loss_surface": lambda path: pictures.loss_surface(trained(), *columns(), path, points=7),
    "decision_boundary": lambda path: pictures.decision_boundary(trained(), *data(), path),
    "cost_chart": lambda path: pictures.cost_chart(costs(), path),
}


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_file_is_written(tmp_path, name, ending):
    path = tmp_path / f"p.{ending}"
    DRAWINGS[name](path)
    assert list(tmp_path.iterdir()) == [path]
    content = path.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xaeB`\x82")
    else:
        assert ET.fromstring(content).tag.endswith("svg")


@pytest.mark.parametrize("name", DRAWINGS)
def test_unknown_endings_and_failures_leave_nothing(tmp_path, monkeypatch, name):
    with pytest.raises(InputError, match=r"p\.xyz: a picture's name must end in one of"):
        DRAWINGS[name](tmp_path / "p.xyz")

    def fail(self, file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        DRAWINGS[name](tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


# ---- computational graphs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["right", "down", None])
def test_values_and_gradients_stand_on_the_graph(drawn, direction):
    pictures.computational_graph(product_and_sum(), "p.png", title="x y + z", direction=direction)
    found = words(drawn[0])
    for text in ("x", " = 2", "∂ −3", "×", " = −6", "∂ 1", "x y + z", "value, forward"):
        assert text in found
    assert sorted(t for t in found if t in ("−3", "2", "1")) == ["1", "1", "2", "−3"]  # on the edges


@pytest.mark.parametrize("direction", ["right", "down"])
def test_no_words_overlap_in_a_small_net(drawn, direction):
    pictures.computational_graph(sigmoid_net(), "p.png", title="2-2-1", direction=direction)
    boxes = extents(drawn[0])
    page = drawn[0].bbox
    assert len(boxes) > 100
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    for a, b in itertools.combinations(boxes, 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        # lines of one box may touch: their extents have room for letters that they do not have
        assert wide <= 1.0 or high <= 0.3 * min(a.height, b.height)


def test_matrices_are_written_out_or_abbreviated(drawn):
    steps = [
        Step(0, "W", (), np.array([[1.0, -2.5], [10.0, 0.125]])),
        Step(1, "X", (), np.full((4, 3), 0.5)),
        Step(2, "v", (), np.array([1, 2, 3])),
        Step(3, "e", (), np.zeros((0, 3))),
        Step(4, "big", (), np.array(1.23456789e-7), np.array(np.nan)),
        Step(5, "zero", (), np.array([[-0.0]])),
    ]
    pictures.computational_graph(steps, "p.png", digits=3)
    found = words(drawn[0])
    for text in ("[ 1  −2.5]", "[10 0.125]", "4×3", "‖·‖ 1.73", " = [1 2 3]", "0×3", " = 1.23e−07", "∂ nan", " = 0"):
        assert text in found


def test_a_trace_is_drawn_as_its_table_reads(drawn):
    """The pair that pictures and trace are for; the steps of a trace may be drawn too, and parts of them."""
    trace = fastbp.trace(lambda x, y: fastbp.square(x) * y + 1.0, 0.5, 3.0)
    for given in (trace, trace.steps, list(trace.steps)):
        pictures.computational_graph(given, "p.png")
        found = words(drawn[-1])
        for text in ("x", " = 0.5", "y", "v2 = square(x)", " = 0.25", "v3 = v2 · y", "v4 = v3 + 1", " = 1.75", "∂ 3"):
            assert text in found
        assert sorted(t for t in found if t in ("1", "3", "0.25")) == ["0.25", "1", "3", "3"]  # on the edges
    pictures.computational_graph(trace.steps[:3], "p.png")
    assert "v3 = v2 · y" not in words(drawn[-1])


def test_a_graph_of_nodes_shows_operations_and_shapes(drawn):
    x, w = graph.input("x", cols=3), graph.param("w", (3, 1))
    loss = (x @ w).sigmoid().square().mean()
    pictures.computational_graph([loss, *graph.gradients(loss, [w])], "p.png")
    found = words(drawn[0])
    for text in ("x", " n×3", "w", " 3×1", "@", "ᵀ@", "σ", "1/n", "Σ"):
        assert text in found
    assert not any("forward" in text for text in found)
    pictures.computational_graph(loss, "p.png")
    assert "ᵀ@" not in words(drawn[1])


def test_labels_are_no_mathematics(drawn):
    pictures.computational_graph([Step(0, "$x", (), np.array(1.0)), Step(1, "$y^", (0,), np.array(1.0))], "p.png")
    assert {"$x", "$y^"} <= set(words(drawn[0]))


def test_a_large_graph_is_still_a_picture(tmp_path):
    steps = [Step(k, "sin", (k - 1,) if k else (), np.array(0.5)) for k in range(pictures._MOST)]
    pictures.computational_graph(steps, tmp_path / "p.png")
    with pytest.raises(InputError, match="401, which no picture can show"):
        pictures.computational_graph([*steps, Step(-1, "sin", (3,), np.array(0.5))], tmp_path / "q.png")


good = product_and_sum()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps must be a trace, a sequence of at least one step"),
        (3, "steps must be a trace, a sequence of at least one step"),
        ([3], r"steps\[0\] has no number, label"),
        ([*good[:3], good[4]], r"steps\[3\].inputs names 3, which is no earlier step"),
        ([*good, good[0]], r"steps\[5\].number is 0, which steps\[0\] has already"),
        ([*good[:3], replace(good[3], edges=(1.0,))], r"steps\[3\].edges has 1 entries for 2 inputs"),
        ([replace(good[0], value="two")], r"steps\[0\].value must be an array of numbers"),
        ([replace(good[0], gradient=np.zeros((1, 2, 3)))], r"steps\[0\].gradient must be .*\(1, 2, 3\)"),
        ([*good[:3], replace(good[3], edges=(1.0, "g"))], r"steps\[3\].edges\[1\] must be"),
        ([good[0], graph.input("x", 1)], "all nodes or all steps"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path, steps, message):
    with pytest.raises(InputError, match=message):
        pictures.computational_graph(steps, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_options_of_a_graph_are_checked(tmp_path):
    with pytest.raises(InputError, match="direction='left' is unknown"):
        pictures.computational_graph(good, tmp_path / "p.png", direction="left")
    with pytest.raises(InputError, match="digits must be an integer of at least 1"):
        pictures.computational_graph(good, tmp_path / "p.png", digits=0)


# ---- descents --------------------------------------------------------------------------------------------------------


def quadratic() -> graph.Node:
    """½ (w₁² + 10 w₂²)."""
    return 0.5 * (graph.param("a", (1, 1)).square() + 10.0 * graph.param("b", (1, 1)).square())


def test_descent_of_a_quadratic_is_known():
    run = pictures.descend(pictures.two_parameters(quadratic()), (-4, 1.5), 0.15, 20)
    steps = np.arange(21)
    expected = np.stack([-4 * 0.85**steps, 1.5 * (-0.5) ** steps], axis=1)
    np.testing.assert_allclose(run.points, expected, atol=1e-12)
    np.testing.assert_allclose(run.losses, 0.5 * (expected**2 @ [1, 10]), rtol=1e-12)
    assert not run.diverges


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)])
def test_one_parameter_of_two_elements(shape):
    x, w = graph.input("x", cols=1), graph.param("w", shape)
    function = pictures.two_parameters((x * w.square().sum()).sum(), {"x": [[2.0], [1.0]]})
    value, gradient = function(np.array([1.0, 2.0]))
    assert value == 15.0
    np.testing.assert_allclose(gradient, [6.0, 12.0])


def test_a_descent_that_overflows_ends_there():
    run = pictures.descend(pictures.two_parameters(quadratic()), (1.0, 1.0), 10.0, 1000)
    assert run.diverges
    assert len(run.losses) == len(run.points) < 1000
    assert np.isfinite(run.losses).all()
    assert np.isfinite(run.points).all()


def test_the_panels_of_a_descent(drawn):
    rates = (0.01, 0.15, 0.25)
    pictures.descent(quadratic(), "p.png", start=(-4.0, 1.5), learning_rates=rates)
    *panels, losses = drawn[0].axes
    titles = [axes.get_title() for axes in panels]
    assert titles == ["ε = 0.01: too small", "ε = 0.15: right", "ε = 0.25: too large, diverges"]
    assert {axes.get_xlabel() for axes in panels} == {"a"}
    assert panels[0].get_ylabel() == "b"
    assert [text.get_text() for text in panels[2].texts if text.get_text()] == ["leaves at step 1"]
    (left, right), (bottom, top) = panels[2].get_xlim(), panels[2].get_ylim()
    tip = next(text for text in panels[2].texts if text.arrow_patch)
    assert left <= tip.xy[0] <= right
    assert tip.xy[1] in (pytest.approx(bottom), pytest.approx(top))
    assert len(losses.lines) == 3
    assert losses.get_yscale() == "log"


@pytest.mark.parametrize("rate", [1e200, 5.0, 1e-12])
def test_a_descent_that_goes_nowhere_or_away_at_once(tmp_path, rate):
    pictures.descent(quadratic(), tmp_path / "p.png", start=(-4.0, 1.5), learning_rates=[rate], steps=300)
    flat = pictures.two_parameters(0.0 * quadratic())
    pictures.descent(flat, tmp_path / "q.png", start=(0, 0), learning_rates=[rate], names=("u", "v"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": 3}, "function must be a node or a function"),
        ({"function": graph.param("w", (1, 2))}, r"loss must be a \(1, 1\) node"),
        ({"function": graph.param("w", (1, 3)).sum()}, "loss must depend on two parameters in all"),
        ({"start": (1, 2, 3)}, "start must be two finite numbers"),
        ({"start": ("a", "b")}, "start must be two finite numbers"),
        ({"start": (np.inf, 0)}, "start must be two finite numbers"),
        ({"learning_rates": 0.1}, "learning_rates must be one to four numbers"),
        ({"learning_rates": []}, "learning_rates must be one to four numbers"),
        ({"learning_rates": [-0.1]}, "learning_rate must be a finite number above 0"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"function": lambda w: (1.0, w[:1])}, r"a gradient \(2,\), got shape \(1,\)"),
        ({"function": lambda w: (np.nan, w)}, "start must be where the loss is finite"),
    ],
)
def test_what_does_not_descend_is_refused(tmp_path, changes, message):
    arguments = {"function": quadratic(), "start": (1.0, 1.0), "learning_rates": [0.1], **changes}
    with pytest.raises(InputError, match=message):
        pictures.descent(path=tmp_path / "p.png", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_descent_that_ends_higher_diverges():
    points = np.zeros((3, 2))
    assert Descent(0.1, points, np.array([1.0, 0.5, 2.0]), 2).diverges
    assert Descent(0.1, points[:2], np.array([1.0, 0.5]), 2).diverges
    assert not Descent(0.1, points, np.array([1.0, 3.0, 0.5]), 2).diverges


# ---- loss surfaces ---------------------------------------------------------------------------------------------------


def columns() -> tuple[np.ndarray, np.ndarray]:
    X, labels = data()
    return X, labels[:, None].astype(float)


def test_directions_have_the_norms_of_the_units(dtype):
    net = trained(dtype=dtype)
    for direction in pictures.filter_normalised_directions(net, seed=3):
        weights, biases = net.split(direction)
        for d, w in zip(weights, net.weights, strict=True):
            np.testing.assert_allclose(np.linalg.norm(d, axis=0), np.linalg.norm(w, axis=0), rtol=1e-6)
        assert not any(b.any() for b in biases)


def test_weights_of_every_kind_of_network_have_directions(tmp_path):
    """Skip weights too, and networks that are no chain; biases do not move."""
    x = fastbp.layers.Input(2)
    h = fastbp.layers.Dense(3, "tanh")(x)
    nets = [
        MLP([2, 3, 1], skip=[(0, 2)], seed=0),
        fastbp.Network(x, fastbp.layers.Dense(1)(fastbp.layers.concat([h, x]))),
    ]
    for net in nets:
        direction = pictures.filter_normalised_directions(net)[0]
        for name, part in net.views(direction).items():
            norms = np.linalg.norm(np.atleast_2d(net.views()[name]).astype(float), axis=0)
            expected = np.zeros_like(part) if name.endswith(".b") else norms
            np.testing.assert_allclose(np.linalg.norm(np.atleast_2d(part), axis=0), expected, rtol=1e-12)
        pictures.loss_surface(net, *columns(), tmp_path / "p.png", points=3)


def test_directions_follow_the_seed():
    net = trained()
    first, second = pictures.filter_normalised_directions(net, seed=1)
    again = pictures.filter_normalised_directions(net, seed=1)
    np.testing.assert_array_equal((first, second), again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, pictures.filter_normalised_directions(net, seed=2)[0])


def test_a_unit_without_weights_is_not_moved():
    net = MLP([2, 3, 1], init="zeros")
    assert not np.any(pictures.filter_normalised_directions(net, 0))


def test_the_surface_is_the_loss_and_the_network_stays(dtype):
    net, (X, T) = trained(dtype=dtype), columns()
    theta, history = net.theta.copy(), len(net.history.loss)
    at, losses = pictures.surface_values(net, X, T, size=0.5, points=5, seed=4)
    np.testing.assert_array_equal(net.theta, theta)
    assert len(net.history.loss) == history
    np.testing.assert_allclose(at, [-0.5, -0.25, 0.0, 0.25, 0.5])
    assert losses[2, 2] == net.loss(X, T)
    first, second = pictures.filter_normalised_directions(net, 4)
    net.theta = theta + 0.5 * first - 0.25 * second
    assert losses[1, 4] == net.loss(X, T)  # row b, column a


def test_a_surface_that_is_partly_infinite(tmp_path):
    net = MLP([1, 1], loss="mse", dtype="float32", seed=0)
    net.theta = np.array([1e19, 0.0])
    X, T = np.array([[1.0]]), np.array([[1e19]])
    _, losses = pictures.surface_values(net, X, T, size=10.0, points=9)
    assert np.isinf(losses).any()
    assert losses[4, 4] == 0.0
    pictures.loss_surface(net, X, T, tmp_path / "p.png", size=10.0, points=9)
    with pytest.raises(InputError, match="no finite loss anywhere"):
        pictures.loss_surface(net, X, -1e30 * X, tmp_path / "q.png", points=3)


def test_a_flat_surface_is_drawn(tmp_path):
    net = MLP([2, 1], init="zeros", loss="mse")
    pictures.loss_surface(net, *columns(), tmp_path / "p.png", points=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": 4}, "points must be odd"),
        ({"points": 1}, "points must be an integer of at least 3"),
        ({"size": 0.0}, "size must be a finite number above 0"),
        ({"seed": -1}, "seed must be an integer"),
        ({"X": np.zeros((3, 3))}, "X must be a 2-D array"),
        ({"T": np.zeros((3, 1))}, "T has 3 rows, but X has 60"),
    ],
)
def test_what_is_no_surface_is_refused(tmp_path, changes, message):
    X, T = columns()
    with pytest.raises(InputError, match=message):
        pictures.loss_surface(**{"net": trained(), "X": X, "T": T, "path": tmp_path / "p.png", **changes})
    assert not list(tmp_path.iterdir())


# ---- decisions -------------------------------------------------------------------------------------------------------


def test_wrong_points_are_ringed(drawn):
    net, (X, labels) = trained(), data()
    pictures.decision_boundary(net, X, labels, "p.png")
    wrong = int((net.predict(X)[:, 0] != labels).sum())
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["class 0", "class 1"] + [f"wrong: {wrong} of 60"] * bool(wrong)


def test_regions_are_what_the_network_decides(drawn):
    X, _ = data()
    labels = (X[:, 0] > 0).astype(int) + 2 * (X[:, 1] > 0)
    net = MLP([2, 16, 4], loss="cross_entropy", seed=0)
    net.fit(X, labels, epochs=60, batch_size=10)
    pictures.decision_boundary(net, X, labels[:, None], "p.png", title="quadrants")
    axes = drawn[0].axes[0]
    image = axes.images[0]
    left, right, bottom, top = image.get_extent()
    rows, cols = image.get_array().shape[:2]
    colours = np.array([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in pictures._COLOURS[:4]])
    for x in X:
        pixel = image.get_array()[round((x[1] - bottom) / (top - bottom) * (rows - 1))][
            round((x[0] - left) / (right - left) * (cols - 1))
        ]
        sure = net.forward(x[None])[0]
        if sure.max() > 0.9:
            towards = (1 - pixel) / np.linalg.norm(1 - pixel)
            hues = (1 - colours) / np.linalg.norm(1 - colours, axis=1)[:, None]
            assert (hues @ towards).argmax() == sure.argmax()


def test_one_class_and_one_point(tmp_path):
    pictures.decision_boundary(trained(), [[0.5, 0.5]], [1], tmp_path / "p.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"net": MLP([3, 1])}, r"net must have two inputs to be drawn, got layers=\[3, 1\]"),
        ({"net": MLP([2, 8])}, "net must have at most 7 classes"),
        ({"X": np.zeros((3, 3))}, "X must be a 2-D array"),
        ({"X": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "X has no rows"),
        ({"X": np.full((60, 2), np.nan)}, "X must be finite"),
        ({"labels": np.zeros(59, int)}, "labels has 59 rows, but X has 60"),
        ({"labels": np.zeros(60)}, r"labels must be \(n,\) whole numbers"),
        ({"labels": np.zeros((60, 2), int)}, r"labels must be \(n,\) whole numbers"),
        ({"labels": 1}, r"labels must be \(n,\) whole numbers"),
        ({"labels": np.full(60, 2)}, "labels must be 0 … 1"),
    ],
)
def test_what_cannot_be_decided_is_refused(tmp_path, changes, message):
    X, labels = data()
    with pytest.raises(InputError, match=message):
        pictures.decision_boundary(
            **{"net": trained(), "X": X, "labels": labels, "path": tmp_path / "p.png", **changes}
        )
    assert not list(tmp_path.iterdir())


# ---- costs -----------------------------------------------------------------------------------------------------------


def costs() -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            parameters=p,
            loss_call_us=20.0 + p / 100,
            gradient_call_us=30.0 + p / 50,
            naive_us=(p + 1) * (20.0 + p / 100),
            naive_extrapolated=p > 1000,
            ratio=1.2,
            ratio_products=1.5,
        )
        for p in (10_000, 10, 100)
    ]


def test_costs_are_drawn_by_parameters_and_extrapolated_ones_hollow(drawn):
    pictures.cost_chart(costs(), "p.png")
    above, below = drawn[0].axes
    lines = {line.get_label(): line for line in above.lines}
    assert (above.get_xscale(), above.get_yscale()) == ("log", "log")
    assert list(lines["loss, forward"].get_xdata()) == [10, 100, 10_000]
    measured = lines["naive gradient, a forward pass a parameter"]
    extrapolated = lines["naive gradient, a forward pass a parameter, extrapolated"]
    assert list(measured.get_xdata()) == [10, 100]
    assert list(extrapolated.get_xdata()) == [10_000]
    assert extrapolated.get_markerfacecolor() == "white"
    assert list(below.lines[0].get_ydata()) == [1.2] * 3


def test_costs_of_growing_networks_are_measured(tmp_path):
    names = [network.name for network in measure.GROWING]
    report = measure.run(measure.GROWING[:2], backends=["numpy"], quick=True)
    assert [row.network for row in report.rows] == names[:2]
    assert [row.parameters for row in report.rows] == [2 * w * (w + 1) for w in (4, 8)]
    pictures.cost_chart(report.rows, tmp_path / "p.png", title="growing")


@pytest.mark.parametrize("rows", [[], costs()[:1], 3, ["a", "b"]])
def test_costs_of_nothing_are_refused(tmp_path, rows):
    with pytest.raises(InputError, match="costs must be at least two rows"):
        pictures.cost_chart(rows, tmp_path / "p.png")


def test_pictures_are_public():
    assert fastbp.pictures is pictures
