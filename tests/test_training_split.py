"""The one split: by object, the same for every source, and nothing else ever reaches a network."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapetum.core.errors import InputError, UsageError
from tapetum.simulate.injections import SCENARIOS
from tapetum.training.datasets import PacketSource, SimulationSource, join
from tapetum.training.recipe import SimulatedData, load_any_recipe, load_recipe, recipe_names
from tapetum.training.split import LEARNING, require, role_of, select
from tapetum.training.truth import TruthRules

if TYPE_CHECKING:
    from pathlib import Path

FEW = SimulatedData(
    source="simulation", seed=7, mix={"new_source": 1, "dipole": 1}, pool=6, renew=2, validation=3, test=3
)


@given(st.text(min_size=1, max_size=40))
def test_the_first_digit_decides_as_the_design_says(name: str) -> None:
    digit = int(hashlib.sha1(name.encode()).hexdigest()[:8], 16) % 10
    role = role_of(name)
    assert (digit < 3) == (role == "held")
    assert (digit in {3, 4}) == (role == "test")
    assert (digit >= 5) == (role in LEARNING)


@given(st.lists(st.text(min_size=1, max_size=20), max_size=30))
def test_every_object_has_one_role(names: list[str]) -> None:
    chosen = [select(names, role) for role in ("held", "test", "validation", "fit")]
    assert (np.sum(chosen, axis=0) == 1).all() if names else True


@given(st.text(min_size=1, max_size=20))
def test_the_guard_lets_only_learning_objects_through(name: str) -> None:
    if role_of(name) in LEARNING:
        require([name], LEARNING)
    else:
        with pytest.raises(UsageError, match="part of the split"):
            require([name], LEARNING)


def test_a_fifth_of_the_training_objects_validates() -> None:
    roles = [role_of(f"object {number}") for number in range(5000)]
    assert roles.count("validation") / (roles.count("fit") + roles.count("validation")) == pytest.approx(
        0.2, abs=0.03
    )
    assert roles.count("held") / 5000 == pytest.approx(0.3, abs=0.03)


def test_simulated_objects_obey_the_split_too() -> None:
    source = SimulationSource(FEW)
    for role in ("fit", "validation", "test"):
        names = source.examples(role).object_id
        assert names
        assert {role_of(name) for name in names} == {role}


def test_the_pool_slides_and_can_be_made_again() -> None:
    source = SimulationSource(FEW)
    first, second = source.examples("fit", 0), source.examples("fit", 1)
    assert second.object_id[:4] == first.object_id[2:]
    again = SimulationSource(FEW).examples("fit", 1)
    np.testing.assert_array_equal(again.stamps, second.stamps)
    np.testing.assert_array_equal(again.target, second.target)


def test_real_packets_of_each_role_are_of_that_role_and_no_object_is_shared(real_data: Path) -> None:
    paths = [
        real_data / "alerts" / name for name in ("pgir", "wntr", "rubin_alerts.parquet", "ztf_triplets.npz")
    ]
    source = PacketSource(paths, TruthRules())
    by_role = {role: source.examples(role) for role in ("fit", "validation", "test")}
    for role, examples in by_role.items():
        assert len(examples) > 5
        assert {role_of(name) for name in examples.object_id} == {role}
    assert not set(by_role["test"].object_id) & set(join([by_role["fit"], by_role["validation"]]).object_id)


def test_a_later_source_does_not_repeat_an_earlier_one(real_data: Path) -> None:
    first = PacketSource([real_data / "alerts" / "pgir"], TruthRules())
    both = PacketSource([real_data / "alerts" / "pgir", real_data / "alerts" / "wntr"], TruthRules(), [first])
    assert len(first.examples("fit"))
    assert set(both.examples("fit").origin) == {"winter"}


def test_the_same_packet_twice_counts_once(real_data: Path) -> None:
    folder = real_data / "alerts" / "pgir"
    once = PacketSource([folder], TruthRules()).examples("fit")
    twice = PacketSource([folder, folder], TruthRules()).examples("fit")
    assert len(once)
    assert twice.alert_id.tolist() == once.alert_id.tolist()
    assert len(PacketSource([folder], TruthRules()).examples("held")) == 0


def test_every_recipe_of_the_package_is_valid_and_simulates_only_what_can_be() -> None:
    assert "realbogus" in recipe_names()
    for name in recipe_names():
        for data in load_any_recipe(name).data:
            if isinstance(data, SimulatedData):
                assert set(data.mix) <= set(SCENARIOS)
                SimulationSource(data)


def test_mistakes_in_a_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"known: .*realbogus"):
        load_recipe("realbogous")
    (tmp_path / "r.toml").write_text('name = "x"\nsede = 1\n')
    with pytest.raises(InputError, match=r"r\.toml: "):
        load_recipe(str(tmp_path / "r.toml"))
    with pytest.raises(InputError, match="cannot simulate 'comet'"):
        SimulationSource(FEW.model_copy(update={"mix": {"comet": 1.0}}))
