"""Random states of devices of any type, by what torch's module for the type has."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from compat.upstream import devices

KIND = "xpu"


class Generators:
    """torch's module for a device type, with a generator for each of two devices."""

    def __init__(self) -> None:
        self.states = [torch.tensor([0], dtype=torch.uint8), torch.tensor([1], dtype=torch.uint8)]
        self.used = True

    def module(self, *names: str) -> Any:
        functions = {
            "is_initialized": lambda: self.used,
            "get_rng_state_all": lambda: list(self.states),
            "set_rng_state_all": lambda states: self.states.__setitem__(slice(None), states),
            "get_rng_state": lambda: self.states[0],
            "set_rng_state": lambda state: self.states.__setitem__(0, state),
        }
        return types.SimpleNamespace(**{name: functions[name] for name in names})


ALL = ("get_rng_state_all", "set_rng_state_all")
CURRENT = ("get_rng_state", "set_rng_state")


@pytest.fixture
def generators(monkeypatch: pytest.MonkeyPatch) -> Generators:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(KIND))
    return Generators()


def numbers(states: Any) -> Any:
    return {kind: [state.tolist() for state in each] for kind, each in states.items()}


@pytest.mark.parametrize(
    ("names", "states"), [((*ALL, *CURRENT, "is_initialized"), [[0], [1]]), (CURRENT, [[0]])]
)
def test_kept(
    generators: Generators, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], states: Any
) -> None:
    monkeypatch.setattr(torch, KIND, generators.module(*names))
    assert numbers(devices.random_states()) == {KIND: states}
    with devices.kept_random_states():
        generators.states[0] = torch.tensor([7], dtype=torch.uint8)
    assert generators.states[0].tolist() == [0]


def test_no_states(generators: Generators, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, KIND, generators.module())
    assert devices.random_states() == {}
    monkeypatch.setattr(torch, KIND, generators.module(*ALL, "is_initialized"))
    generators.used = False
    assert devices.random_states() == {}


def test_states_of_other_devices_are_left_out(
    generators: Generators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, KIND, generators.module(*ALL))
    other = torch.tensor([7], dtype=torch.uint8)
    devices.restore_random_states({KIND: [other], "mlu": [other], "cuda": ()})
    assert numbers(devices.random_states()) == {KIND: [[0], [1]]}
    devices.restore_random_states({KIND: [other, other]})
    assert numbers(devices.random_states()) == {KIND: [[7], [7]]}


def test_the_cpu_is_no_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.cpu says that it is initialized.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert (devices.built_for(), devices.devices_in_use()) == (None, None)
    assert devices.random_states() == {}
