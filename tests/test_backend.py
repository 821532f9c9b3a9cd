"""Who computes is said in words, and the slow way is never silent."""

import logging

import pytest
from systems import ensemble, structure

from neuralil_ase import NeuralILCalculator
from neuralil_ase.engine import backend, native

needs_core = pytest.mark.skipif(
    native.missing_reason() is not None, reason=f"no compiled core: {native.missing_reason()}"
)


@needs_core
def test_the_compiled_core_names_its_instructions(caplog: pytest.LogCaptureFixture) -> None:
    calc = NeuralILCalculator(ensemble())
    with caplog.at_level(logging.WARNING):
        calc.get_potential_energy(structure("molecule"))
    assert calc.backend == f"compiled, {native.instruction_set()}"
    assert backend.expected_backend(ensemble().config) == calc.backend
    assert not caplog.records


def test_the_slow_way_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        native, "missing_reason", lambda config=None: "it was left out of this test"
    )
    calc = NeuralILCalculator(ensemble())
    assert calc.backend == "JAX on cpu: it was left out of this test"
    with caplog.at_level(logging.WARNING, "neuralil_ase"):
        for name in ("molecule", "tiny"):
            calc.get_potential_energy(structure(name))
            NeuralILCalculator(ensemble()).get_potential_energy(structure(name))
    (record,) = caplog.records
    assert record.getMessage() == (
        "energies and forces are computed by JAX, several times slower than by the compiled core: "
        "it was left out of this test"
    )
