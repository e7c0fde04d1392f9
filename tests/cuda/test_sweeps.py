"""The sweeps of benchmarks/gpu_sweeps.py, on tiny shapes in the simulator: they do what they say they measure."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_sweeps
from gpu_device import ON_CARD, Host

from fastbp.backends.cuda import binding, executable

DEVICE = Host(ON_CARD)


def test_settings_end_with_their_block():
    before = binding.LARGE_TILES
    with gpu_sweeps.setting(binding, LARGE_TILES=7):
        assert binding.LARGE_TILES == 7
    assert before == binding.LARGE_TILES
    with pytest.raises(AttributeError), gpu_sweeps.setting(binding, NO_SUCH_CONSTANT=1):
        pass


def test_launches():
    found = gpu_sweeps.launches(DEVICE, 3)
    assert found["launch_us"] > 0
    assert found["launch_host_us"] > 0


def test_steps_and_captures():
    found = gpu_sweeps.replays(DEVICE, ["2-4-1"], 2, 1)["networks"]["2-4-1"]
    assert found["kernels"] > 4
    assert found["us"].keys() == {"graph", "launches"}
    found = gpu_sweeps.captures(DEVICE, ["2-4-1"], [1], repeats=1)
    assert found["now"] == executable.WORTH_A_GRAPH
    assert list(found["networks"]["2-4-1"]["us"]) == [1]


def test_tiles_are_forced(monkeypatch):
    seen = []
    us = gpu_sweeps.us_a_step

    def noted(device, run, values, n, count, repeats):
        found = us(device, run, values, n, count, repeats)
        seen.append([one.kernel for one in run.bound(n).bound.launches])
        return found

    monkeypatch.setattr(gpu_sweeps, "us_a_step", noted)
    found = gpu_sweeps.tiles(DEVICE, "highest", counts=[1, 2], depths=[3], steps=1, side=72)
    assert seen == [["product_small"], ["product_large"]] * 2
    assert [s["tiles"] for s in found["shapes"].values()] == [1, 2]
    assert found["best"] in (1, 2, 3)


def test_pieces_are_cut_as_asked(monkeypatch):
    seen = []
    us = gpu_sweeps.us_a_step

    def noted(device, run, values, n, count, repeats):
        seen.append(run.bound(n).bound.launches[0].blocks)
        return us(device, run, values, n, count, repeats)

    monkeypatch.setattr(gpu_sweeps, "us_a_step", noted)
    found = gpu_sweeps.pieces(DEVICE, "highest", [96], [(2, 3)], wanted=[2, 8], shortest=[32, 64], steps=1, repeats=1)
    assert seen == [1, 3, 2]  # two of the four choices do not cut
    (times,) = (s["us"] for s in found["shapes"].values())
    assert list(times) == ["2, 32", "2, 64", "8, 32", "8, 64"]
    assert found["loss"] == 0.0
    assert found["loss_now"] is None  # the constants' own values were not among the choices
