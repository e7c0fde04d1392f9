"""The examples run, briefly, and show what they say they show."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "page")


@pytest.fixture
def run(monkeypatch):
    """``main`` of an example by name, with brief settings."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def call(name, **settings):
        return importlib.import_module(name).main(**settings)

    return call


def test_symmetry_1986(run):
    found = run("symmetry_1986", starts=8)
    assert found["right"] == 64
    assert found["ratio_2"] == pytest.approx(2, rel=0.02)
    assert found["ratio_4"] == pytest.approx(4, rel=0.02)
    assert found["asymmetry"] < 0.01
    assert 1 <= found["learned"] < 8
    assert found["xor_with_skip"] == 4
    assert found["xor_without"] < 4


def test_closed_form(run):
    found = run("closed_form", epochs=60)
    assert found["error"] < 1e-13
    assert found["slip"] > 0.1
    assert found["stopped"] == "patience"
    assert found["last"] < 0.3 * found["first"]
    assert found["accuracy"] > 0.8


def test_xor_step_by_step(run):
    found = run("xor_step_by_step")
    assert found["error"] < 1e-15
    assert found["after"] < found["loss"] == pytest.approx(0.072031, abs=1e-6)
    assert found["too_early"] > 1e-4
    assert found["solved"] == 4
    assert found["final"] < 1e-3
    assert found["unlucky"] < 4


def test_chain_rule(run):
    found = run("chain_rule")
    assert found["derivative"] == pytest.approx(found["by_hand"], rel=1e-12)
    assert found["two_paths"] == pytest.approx(found["sum_of_parts"], rel=1e-12)
    assert found["second"] == pytest.approx(2 * np.exp(0.5) * np.cos(0.5), rel=1e-12)


def test_learning_rates(run):
    found = run("learning_rates")
    assert found["right"] < 0.1 * found["small"] < found["start"]
    assert found["large"] > 100 * found["start"]
    assert found["distance"] < 0.05


def test_loss_landscape(run):
    found = run("loss_landscape", points=11, seeds=1)
    assert found["chain"] < 0.5
    assert found["skipping"] < 0.5
    assert found["skipping border"] < found["chain border"]


def test_neural_field(run):
    found = run("neural_field", size=48, epochs=30)
    assert found["sines"] > found["coordinates"] + 4


def test_second_derivatives(run):
    found = run("second_derivatives", steps=600)
    assert found["last"] < 1e-3 * found["first"]
    assert found["error"] < 1e-3


def test_optimisers(run):
    found = run("optimisers", steps=100)
    assert set(found) == {"sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "ftrl"}
    assert max(found.values()) < 0.4


def test_naive_gradient(run):
    found = run("naive_gradient", networks=2)
    assert found["error"][0] < 1e-7
    assert found["passes"] == [5 * 3 + 3 + 3 + 1 + 1]
    assert found["parameters"] == [40, 144]
    assert len(found["naive_by_backprop"]) == len(found["backward_by_forward"]) == 2
    assert found["theory"] == [1.5, 1.5]


def test_batch_modes(run):
    found = run("batch_modes", epochs=10)
    assert [found[name]["steps"] for name in found if name != "loop"] == [10, 250, 8000, 8000]
    assert found["loop"]["difference"] < 1e-12
    assert found["full batch"]["loss"] > found["mini-batches of 32"]["loss"] > found["single rows"]["loss"]
    assert found["single rows"]["accuracy"] > 0.8


def test_mixture_density(run):
    found = run("mixture_density", steps=1200)
    assert found["mixture"] < found["single"] - 0.6
    np.testing.assert_allclose(found["answers"], found["true"], atol=0.1)
    assert found["true"] == pytest.approx([0.21, 0.5, 0.79], abs=0.01)


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert set(NAMES) <= tested
    assert len(NAMES) >= 12


PICTURES = {
    "symmetry_1986": {"starts": 1},
    "xor_step_by_step": {"epochs": 50},
    "chain_rule": {},
    "closed_form": {"epochs": 3},
    "learning_rates": {},
    "loss_landscape": {"epochs": 2, "points": 5, "seeds": 1},
    "neural_field": {"size": 16, "epochs": 1},
    "second_derivatives": {"steps": 20},
    "optimisers": {"steps": 5},
    "naive_gradient": {"networks": 2},
    "batch_modes": {"epochs": 2},
    "mixture_density": {"steps": 20},
}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_drawn_where_asked(run, name, tmp_path):
    pytest.importorskip("matplotlib")
    run(name, out=str(tmp_path / "folder"), **PICTURES[name])
    drawn = list((tmp_path / "folder").iterdir())
    assert drawn
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_a_page(monkeypatch, name):
    """It says what it shows, and its options have defaults; pictures are drawn only if asked for."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    module = importlib.import_module(name)
    parameters = inspect.signature(module.main).parameters
    assert len(module.__doc__.splitlines()) > 5
    assert all(p.default is not inspect.Parameter.empty for p in parameters.values())
    assert parameters["out"].default is None


def test_examples_are_scripts(tmp_path):
    """Run from any folder; options are those of ``main``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def script(name, *options):
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *options]
        return subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", cwd=tmp_path, env=environment, check=True
        ).stdout

    assert "= 0.347" in script("chain_rule", "--x", "0.5")
    shown = script("mixture_density", "--help")
    assert "--steps" in shown
    assert "Bishop" in shown
    assert not list(tmp_path.iterdir())
