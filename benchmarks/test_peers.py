"""The peers of report_peers.py and random_shapes.py: the same results as fastbp, and a step of each timed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import peers
import pytest
import random_shapes
from peers import PEERS, Comparison, Fastbp, Peer, WrongResultError, make_task

from fastbp.measure import NETWORKS, Network

TINY = peers.Effort(run=1e-4, pause=0.0, budget=0.0, fewest=2, most=2)
SMALL = NETWORKS["4-5-3"]
CASES = {
    "half_sse": replace(SMALL, output="identity", activation="tanh"),
    "cross_entropy": Network("9-6-5-3", (9, 6, 5, 3), 7, "gelu", "softmax", "cross_entropy"),
}


def kinds(*more: type[Peer]) -> list[Any]:
    """The peers as parameters; compiling with torch takes long."""
    return [
        pytest.param(kind, id=kind.name, marks=[pytest.mark.large] if kind is peers.TorchCompiled else [])
        for kind in (*more, *PEERS)
    ]


def not_without(kind: type[Peer], network: Network) -> None:
    if reason := kind.refuses(network):
        pytest.skip(reason)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", kinds())
def test_same_results_and_some_time(kind: type[Peer], case: str) -> None:
    network = CASES[case]
    not_without(kind, network)
    comparison = Comparison(make_task(network), [kind])
    comparison.pilot(TINY)
    comparison.rounds(TINY)
    timings = comparison.timings()
    assert list(timings) == ["fastbp", kind.name]
    assert all(timing.us > 0 and timing.rounds == 2 and timing.exact_network for timing in timings.values())


@pytest.mark.parametrize("activation", random_shapes.ACTIVATIONS)
@pytest.mark.parametrize("kind", [kind for kind in PEERS if kind is not peers.TorchCompiled], ids=lambda k: k.name)
def test_every_activation(kind: type[Peer], activation: str) -> None:
    network = Network("3-8-5-2", (3, 8, 5, 2), 6, activation, "identity", "half_sse")
    not_without(kind, network)
    assert kind.name in Comparison(make_task(network), [kind]).timings()


def test_a_learning_rate_is_tried_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """624-374-60-1-35, all linear, has small gradients at first: the rate by their length was 10 times too large."""
    network = replace(SMALL, activation="identity", output="identity")
    task = make_task(network)
    net, data = network.make("float64", "numpy"), (task.X[0], task.T[0], task.theta)
    first, gradient = net.loss_and_grad(*data[:2])
    assert peers._descends(net, *data, task.rate, first, gradient)
    assert not peers._descends(net, *data, 1e3, first, gradient)
    tried: list[float] = []
    monkeypatch.setattr(peers, "_descends", lambda *asked: bool(tried.append(asked[4]) or len(tried) > 2))
    assert make_task(network).rate == pytest.approx(task.rate / 100)
    assert tried == pytest.approx([task.rate, task.rate / 10, task.rate / 100])
    monkeypatch.setattr(peers, "_descends", lambda *asked: False)
    with pytest.raises(WrongResultError, match="falls at no learning rate"):
        make_task(network)


def test_scikit_learn_on_another_output() -> None:
    not_without(peers.ScikitLearn, SMALL)
    timings = Comparison(make_task(SMALL), [peers.ScikitLearn]).timings()
    assert not timings["scikit-learn"].exact_network
    assert peers.best_peer(timings) == ""


def test_a_peer_that_trains_something_else_is_named() -> None:
    class Wrong(peers.NumPyLoop):
        name = "wrong"

        def _step(self, x: Any, t: Any) -> None:
            super()._step(x, 0.99 * t)

    with pytest.raises(WrongResultError, match=r"wrong on .*4-5-3"):
        Comparison(make_task(SMALL), [Wrong])


def test_random_networks_stay_within_limits() -> None:
    drawn = [random_shapes.draw(7, index)[0] for index in range(50)]
    assert drawn == [random_shapes.draw(7, index)[0] for index in range(50)]
    assert len({network.layers for network in drawn}) > 45
    assert {len(network.layers) - 1 for network in drawn} == set(range(1, random_shapes.MOST_LAYERS + 1))
    for network in drawn:
        assert min(network.layers) >= 1
        assert max(network.layers) <= random_shapes.WIDEST
        assert 1 <= network.batch <= random_shapes.MOST_ROWS
        assert random_shapes.operations(network) <= random_shapes.MOST_OPERATIONS


def test_a_random_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_shapes, "draw", lambda seed, index: (CASES["half_sse"], 0))
    monkeypatch.setattr(random_shapes, "PEERS", (peers.NumPyLoop,))
    row = random_shapes.examine(3, 0, TINY, compiled=False)
    assert row.best == "NumPy"
    assert random_shapes.Row.from_json(json.loads(json.dumps(asdict(row)))) == row
    assert "1 networks" in random_shapes.summary([row])


@pytest.mark.parametrize("kind", kinds(Fastbp))
def test_step(benchmark: Any, kind: type[Peer]) -> None:
    network = NETWORKS["64-64-64-10"]
    not_without(kind, network)
    task = make_task(network)
    peer = kind(task)
    benchmark.group = f"{task.steps} steps of {network.name}"
    with peer.using(peer.ways()[0]):
        peer.reset()
        peer.run(1)  # compiles
        benchmark(peer.run, 1)
