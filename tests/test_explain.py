"""Where a step's time goes: what is said of every line; not its times, which no test can know."""

from __future__ import annotations

import builtins
import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

import fastbp
from fastbp import cli, explain, measure
from fastbp.backends.threads import get_num_threads
from fastbp.errors import DataError, InputError, MissingExtraError
from fastbp.explain import DEPTH_FIRST, Explanation, network_of
from fastbp.measure import NETWORKS, Network

CASES: dict[str, tuple[Network, str]] = {
    "sgd": (NETWORKS["784-30-10"], "sgd"),
    "adam": (NETWORKS["784-30-10"], "adam"),
    "depth first": (NETWORKS["4-32-16-4"], "sgd"),
    "depth first, ftrl": (network_of("5-16-8-3", batch=1500, loss="bce", activation="tanh"), "ftrl"),
    "classes": (network_of("20-16-12-3", batch=50, loss="cross_entropy", activation=("gelu", "relu")), "momentum"),
    "classes, depth first": (network_of("6-16-3", batch=2000, loss="cross_entropy", activation="silu"), "sgd"),
    "some sums alone": (network_of("20-30-100", batch=16), "adam"),
    "one layer": (network_of("3-1", batch=1), "sgd"),
    "wide": (network_of("256-300-200", batch=256, activation="leaky_relu"), "adamw"),
}


@pytest.fixture(scope="module")
def found() -> dict[str, Explanation]:
    return {name: explain.explain(network, optimizer=rule, quick=True) for name, (network, rule) in CASES.items()}


@pytest.fixture(params=CASES)
def one(request: pytest.FixtureRequest, found: dict[str, Explanation]) -> tuple[Network, str, Explanation]:
    return *CASES[request.param], found[request.param]


def step_of(network: Network, rule: str) -> Any:
    """The compiled step, made as users make it."""
    target = "labels" if network.loss == "cross_entropy" else "T"
    return network.make("float32", "cpu").training_step(("X", target), fastbp.optim.get(rule), False)


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_lines_are_those_of_the_table(one: tuple[Network, str, Explanation]) -> None:
    network, rule, found = one
    bound = step_of(network, rule).bound(network.batch)
    assert [(p.what, p.schedule, p.inside, p.shared) for p in found.lines] == [
        (line.what, line.schedule, line.inside, line.shared) for line in bound.lines
    ]
    assert (found.workspace, found.private) == (bound.workspace, bound.private)
    assert found.threads == (get_num_threads() if bound.shared else 1)


def test_operations_are_the_programs(one: tuple[Network, str, Explanation]) -> None:
    """All of them, each once, whatever is fused into what."""
    network, rule, found = one
    program = step_of(network, rule).program
    assert found.operations == program.operations(network.batch)
    assert sum(part.operations for part in found.lines if not part.inside) == found.operations
    products = sum(part.operations for part in found.lines if part.product)
    assert products >= program.product_operations(network.batch)


def test_what_is_inside_adds_up(found: dict[str, Explanation]) -> None:
    for name, e in found.items():
        outer = [part for part in e.lines if part.what == DEPTH_FIRST]
        inside = [part for part in e.lines if part.inside]
        assert len(outer) == ("depth first" in name)
        assert sum(part.operations for part in inside) == sum(part.operations for part in outer)
        assert bool(inside) == bool(outer)


def test_figures_agree_with_each_other(one: tuple[Network, str, Explanation]) -> None:
    _, _, e = one
    assert sum(part.share for part in e.lines if not part.inside) == pytest.approx(1.0)
    assert sum(part.us for part in e.lines if not part.inside) == pytest.approx(e.lines_us)
    assert e.bytes == sum(part.bytes for part in e.lines if not part.inside)
    assert e.peak_fraction == pytest.approx(e.floor_us / e.step_us)
    assert e.floor_us == pytest.approx(e.operations / e.machine.peak[e.threads] / 1e3)
    helpers = 1
    for part in e.lines:
        helpers = helpers if part.inside else e.threads if part.shared else 1
        cores, beside = (1, helpers) if part.inside else (helpers, 1)
        assert part.share == pytest.approx(part.us / e.lines_us / beside)
        assert part.floor_us == pytest.approx(part.operations / e.machine.peak[cores] / 1e3)
        assert part.bytes > 0
        if part.us:  # less the clock, a line may have taken nothing
            assert part.peak_fraction == pytest.approx(part.floor_us / part.us)
            assert part.gflops == pytest.approx(part.operations / part.us / 1e3)
            assert part.gbytes == pytest.approx(part.bytes / part.us / 1e3)


def test_names_of_what_is_made(found: dict[str, Explanation]) -> None:
    def made(name: str, start: str) -> list[str]:
        return [part.makes for part in found[name].lines if part.what.startswith(start)]

    assert made("sgd", "matmul") == ["A1", "A2", "dZ1", "dW2", "dW1"]
    assert made("depth first", "matmul") == ["A1", "A2", "A3", "dZ2", "dW3", "dZ1", "dW2", "dW1"]
    assert made("classes", "matmul") == ["A1", "A2", "Z3", "dZ2", "dW3", "dZ1", "dW2", "dW1"]
    assert made("one layer", "matmul") == ["A1", "dW1"]
    for name, (network, _) in CASES.items():
        makes = " and ".join(part.makes for part in found[name].lines).split(" and ")
        layers = range(1, len(network.layers))
        assert {f"{what}{layer}" for what in ("dW", "dZ") for layer in layers} | {"loss"} <= set(makes)


def test_every_bias_has_its_gradient(found: dict[str, Explanation]) -> None:
    """In a line of its own, or with the product that makes dW."""
    for name, (network, _) in CASES.items():
        alone = [part for part in found[name].lines if part.makes.startswith("db")]
        assert [part.shape[1] for part in alone] == [network.layers[int(part.makes[2:])] for part in alone]
        with_products = [part.makes.replace("dW", "db") for part in found[name].lines if "with db" in part.schedule]
        made = [part.makes for part in alone] + with_products
        assert sorted(made) == [f"db{layer}" for layer in range(1, len(network.layers))]


def test_updates(found: dict[str, Explanation]) -> None:
    def made(name: str, start: str) -> list[str]:
        return [part.makes for part in found[name].lines if part.what.startswith(start)]

    assert set(made("adam", "update")) == set(made("depth first, ftrl", "update")) == {"theta"}


def test_shapes(found: dict[str, Explanation]) -> None:
    def shape(name: str, makes: str) -> tuple[int, ...]:
        return next(part.shape for part in found[name].lines if part.makes == makes)

    assert shape("sgd", "A1") == (10, 30, 784)
    assert shape("sgd", "dW1") == (784, 30, 10)
    outer = next(part for part in found["depth first"].lines if part.what == DEPTH_FIRST)
    assert outer.shape == (10_000,)
    rows, *others = shape("depth first", "A2")
    assert others == [16, 32]
    assert f"{rows} at a time" in outer.schedule  # a whole chunk's, though 10,000 rows end with a shorter one


def test_bytes_of_an_update(found: dict[str, Explanation]) -> None:
    """Fused or not, an update reads and writes the weights and its states; fused, it writes no gradient."""
    m, n, k = 30, 10, 10  # one panel of columns with vectors of any size, so that Adam is fused too
    for name, states, rule in (("sgd", 0, "sgd"), ("adam", 2, "adam")):
        line = next(part for part in found[name].lines if part.makes == "dW2")
        notes = line.schedule.split(", ")
        assert rule in notes
        updated = m * n + n * ("with db" in notes)
        assert line.bytes == 4 * (m * k + k * n + (2 + 2 * states) * updated)
    for line in (part for part in found["wide"].lines if part.makes == "theta"):
        assert line.bytes == 4 * 7 * line.shape[1]


def test_settings_are_kept(found: dict[str, Explanation]) -> None:
    e = found["classes"]
    assert (e.network, e.layers, e.batch, e.loss) == ("20-16-12-3", (20, 16, 12, 3), 50, "cross_entropy")
    assert (e.activations, e.optimizer, e.dtype) == (("gelu", "relu", "softmax"), "Momentum", "float32")
    assert e.parameters == 21 * 16 + 17 * 12 + 13 * 3
    assert explain.explain(network_of("3-1"), dtype="float64", quick=True).dtype == "float64"


def test_threads_are_for_this_explanation() -> None:
    before = get_num_threads()
    network = network_of("4-16-4", batch=4000)
    assert explain.explain(network, threads=2, quick=True).threads == 2
    e = explain.explain(network, threads=1, quick=True)
    assert e.threads == 1
    assert list(e.machine.peak) == [1]
    with pytest.raises(InputError, match="threads"):
        explain.explain(network, threads=0)
    assert get_num_threads() == before


# ---- which network -------------------------------------------------------------------------------------------------


def test_networks_by_name_and_by_widths() -> None:
    assert network_of("784-30-10") is NETWORKS["784-30-10"]
    assert network_of("20-50-1") == Network("20-50-1", (20, 50, 1), 32, "relu", "identity", "mse")
    changed = network_of("784-30-10", batch=7, loss="cross_entropy", activation=["tanh"])
    assert changed == Network("784-30-10", (784, 30, 10), 7, ("tanh",), "softmax", "cross_entropy")
    assert network_of("2-3-1", loss="mse", output="tanh").output == "tanh"


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("784-30-1o", {}, r"network='784-30-1o' is unknown; did you mean '784-30-10'\?.* 20-50-1"),
        ("784", {}, "network='784' is unknown"),
        ("99999999999-1", {}, "is unknown"),
        ("2-3-1", {"loss": "mes"}, "loss='mes' is unknown; did you mean 'mse'"),
        ("2-3-1", {"batch": 0}, "batch must be an integer of at least 1"),
        ("2-3-1", {"batch": 10**30}, "batch must be at most"),
    ],
)
def test_networks_that_are_none(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        network_of(name, **options)


def test_settings_that_are_none() -> None:
    network = network_of("2-3-1")
    with pytest.raises(InputError, match="optimizer='sgdd' is unknown; did you mean 'sgd'"):
        explain.explain(network, optimizer="sgdd")
    with pytest.raises(InputError, match="dtype='float16'"):
        explain.explain(network, dtype="float16")
    with pytest.raises(InputError, match=r"layers\[1\]"):
        explain.explain(network_of("2-0-1"))


# ---- JSON ----------------------------------------------------------------------------------------------------------


def test_json_round_trip(found: dict[str, Explanation], tmp_path: Any) -> None:
    for e in found.values():
        explain.save_json(e, tmp_path / "e.json")
        assert Explanation.from_json((tmp_path / "e.json").read_text(encoding="utf-8")) == e
    assert list(tmp_path.iterdir()) == [tmp_path / "e.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"machine": {"peak": {}}, "lines": []}', '{"machine": {"peak": 1}}'])
def test_what_is_no_explanation_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="not an explanation"):
        Explanation.from_json(text)


# ---- how it looks --------------------------------------------------------------------------------------------------


def shown(e: Explanation, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(explain.table(e, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100, 130, 160])
def test_table_is_whole(one: tuple[Network, str, Explanation], width: int) -> None:
    e = one[-1]
    long = tuple(dataclasses.replace(part, us=142_974.0, schedule="88 pieces, A packed, B packed") for part in e.lines)
    for lines in (shown(e, width), shown(dataclasses.replace(e, lines=long), width)):
        assert max(map(len, lines)) <= width
        assert not any("…" in line for line in lines)
        rows = [line.removeprefix("│ ").split() for line in lines if line and line.lstrip("│ ")[:1].isalpha()]
        firsts = [row[0] for row in rows]
        assert [name for name in firsts if name.startswith("d")].count("dW1") == 1
        heads = " ".join(lines[:2])
        assert all(head in heads for head in ("line", "shape", "µs", "step", "peak", "schedule"))
        assert ("GFLOP/s" in heads) == (width >= 100)
        assert ("bytes" in heads) == ("floor" in heads) == (width >= 130)
    assert "142,974" in "".join(lines)


def test_lines_inside_stand_below_their_line(found: dict[str, Explanation]) -> None:
    lines = shown(found["depth first"], 80)
    outer = next(k for k, line in enumerate(lines) if "depth first" in line)
    marked = [k for k, line in enumerate(lines) if line.startswith("│ ")]
    assert len(marked) == sum(part.inside for part in found["depth first"].lines)
    assert outer < marked[0]
    assert marked == list(range(marked[0], marked[-1] + 1))
    assert not any(line.startswith("│") for line in shown(found["sgd"], 80))


def test_fused_functions_as_formulas(found: dict[str, Explanation]) -> None:
    text = "\n".join(shown(found["classes"], 80))
    for name in ("A1    matmul + b, gelu ", "A2    matmul + b, relu ", "Z3    matmul + b ", "dZ1   matmul Bᵀ × gelu′ "):
        assert name in text


def test_schedules_break_at_commas() -> None:
    assert explain._in_lines("", 14) == ""
    assert explain._in_lines("8 pieces, A packed, B packed, sgd", 14) == "8 pieces,\nA packed,\nB packed, sgd"
    assert explain._in_lines("20 of 512 rows, 256 at a time", 14) == "20 of 512 rows,\n256 at a time"
    assert explain._in_lines("8 pieces, sgd", 80) == "8 pieces, sgd"


def test_summary_adds_up(found: dict[str, Explanation]) -> None:
    e = found["sgd"]
    parts = [
        dataclasses.replace(part, share=0.9 if part.makes == "dW1" else 0.0, peak_fraction=0.5) for part in e.lines
    ]
    parts[0] = dataclasses.replace(parts[0], share=0.05, peak_fraction=1.0)
    parts[2] = dataclasses.replace(parts[2], share=0.05, peak_fraction=0.2)
    e = dataclasses.replace(e, lines=tuple(parts), step_us=12.345, peak_fraction=0.55)
    assert explain.summary(e).splitlines() == [
        "784-30-10, 10 rows: 2 × sigmoid; half_sse; SGD; float32",
        "A step takes 12.3 µs on 1 thread, at 55% of the FMA peak.",
        "Products take 95% of it and run at 53% of the peak; everything else takes 5%.",
        "Furthest above their floors, as a part of the step: dW1 45%, dZ2 and loss 4%, A1 0%.",
    ]


def test_notes(found: dict[str, Explanation]) -> None:
    peak = {1: 120.0, 2: 236.0}
    e = dataclasses.replace(found["sgd"], spread=0.01, lines_us=12.3, clock_ns=22.4, workspace=98_368)
    e = dataclasses.replace(e, machine=dataclasses.replace(e.machine, peak=peak))
    text = explain.notes(e)
    assert "add up to 12.3 µs, 22 ns for the clock" in text
    assert "120 on 1, 236 on 2" in text
    assert "workspace 98.4 kB" in text
    assert "depth first" not in text
    assert "busy" not in text
    assert "busy" in explain.notes(dataclasses.replace(e, spread=0.3))
    slow = dataclasses.replace(e.machine, peak={1: 120.0, 2: 130.0})
    assert "busy" in explain.notes(dataclasses.replace(e, threads=2, machine=slow))

    e = found["depth first"]
    parts = [dataclasses.replace(part, share=0.9 if part.what == DEPTH_FIRST else 0.0) for part in e.lines]
    inside = next(k for k, part in enumerate(parts) if part.inside)
    parts[inside] = dataclasses.replace(parts[inside], share=0.8)
    e = dataclasses.replace(e, lines=tuple(parts))
    assert "10% of the step in none of them" in explain.notes(e)
    assert "Products take 80% of it and run at " in explain.summary(e)
    assert "everything else takes 10%, waiting 10%." in explain.summary(e)


def test_without_rich_the_extra_is_named(found: dict[str, Explanation], monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.split(".")[0] == "rich":
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"fastbp\[cli\]"):
        explain.table(found["sgd"], 80)


# ---- the command ---------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", *map(str, arguments)])
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


@pytest.mark.parametrize("width", [80, 160])
def test_command(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(cli, "_console", lambda: Console(width=width, highlight=False))
    options = ("--batch", 9, "--activation", "tanh,gelu", "--loss", "bce", "--optimizer", "adam", "--threads", 1)
    file = tmp_path / "e.json"
    code, out, _ = run(capsys, "--explain", "6-5-4-2", *options, "--backend", "cpu", "--quick", "--json", file)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "6-5-4-2, 9 rows: tanh, gelu, sigmoid; bce; Adam; float32"
    assert lines[1].startswith("A step takes ")
    assert max(map(len, lines)) <= width
    assert any(line.startswith("dZ1   matmul Bᵀ × tanh′ ") for line in lines)
    assert ("GFLOP/s  GB/s" in out) == (width == 160)
    e = Explanation.from_json(file.read_text(encoding="utf-8"))
    assert (e.batch, e.activations, e.loss, e.optimizer) == (9, ("tanh", "gelu", "sigmoid"), "bce", "Adam")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--explain", "784-30-1o"), "did you mean '784-30-10'?"),
        (("--explain", "2-3-1", "--backend", "numpy"), "--explain shows the lines of the cpu backend's table"),
        (("--explain", "2-3-1", "--backend", "cpuu"), "did you mean 'cpu'?"),
        (("--explain", "2-3-1", "--activation", "rleu"), "did you mean 'relu'?"),
        (("--explain", "2-3-1", "--activation", "relu,relu"), "activation has 2 names"),
        (("--explain", "2-3-1", "--loss", "bce", "--output", "relu"), "does not go with loss='bce'"),
        (("--explain", "2-3-1", "--optimizer", "adm"), "did you mean 'adam'?"),
        (("--explain", "2-3-1", "--threads", "0"), "threads must be an integer from 1"),
        (("--explain", "2-3-1", "--network", "2-3-1"), "--network does not go with --explain"),
        (("--explain", "2-3-1", "--plot", "p.png"), "--plot does not go with --explain"),
        (("--explain", "2-3-1", "--json", "nowhere/e.json"), "nowhere"),
        (("--batch", "3"), "--batch is for one network: say which with --explain NETWORK"),
        (("--loss", "mse"), "--loss is for one network"),
    ],
)
def test_command_refuses_before_it_measures(
    options: tuple[str, ...],
    named: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "fma_peak", never)
    code, out, err = run(capsys, *options)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert named in err
    assert list(tmp_path.iterdir()) == []
