"""Classes of variable sources, as data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tapetum.core.errors import InputError, UsageError
from tapetum.finders.taxonomy import Taxonomy, load_taxonomy

if TYPE_CHECKING:
    from pathlib import Path

DESCRIBED = """
    vnv pnp sin el saw mp longt e ea eb ew wp hp dp i fla dip bogus ext blend bright artfct
    agn bis blher blyr cbin ceph ceph2 cv dscu emsms f o hwvir nnser rdbkp lpv mir srv osarg puls rrlyr rrab rrc rrd
    rrblz rscvn rvtau wuma wvir yso
"""


def test_every_described_class_is_there() -> None:
    assert set(DESCRIBED.split()) <= set(load_taxonomy().by_code)


def test_the_tree_is_that_of_the_described_system() -> None:
    scope = load_taxonomy()
    assert scope.ancestors("ew") == ("e", "pnp", "vnv")
    assert scope.ancestors("mir") == ("lpv", "puls")
    assert scope.children("rrlyr") == ("rrab", "rrc", "rrd", "rre", "rrblz")
    assert scope.children("bogus") == ("ext", "blend", "bright", "artfct")
    assert "vnv" not in scope.leaves()
    assert scope.of("non-variable").opposite == "vnv"
    assert scope.of("Mira") is scope.of("mir")
    weighted = " ".join(sorted(c.code for c in scope.classes if c.weighted))
    assert weighted == "artfct cbin ea f hwvir nnser o rdbkp rvtau"


def test_a_file_is_a_taxonomy_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\n[[class]]\ncode = "puls"\nlabel = "Pulsators"\nview = "ontological"\n'
        '[[class]]\ncode = "rr"\nlabel = "RR Lyrae"\nview = "ontological"\nparent = "puls"\n'
    )
    assert load_taxonomy(path).ancestors("rr") == ("puls",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "not TOML"),
        ('name = "x"', "class: Field required"),
        ('name = "x"\n[[class]]\ncode = "A b"\nlabel = "l"\nview = "ontological"', "class.0.code"),
        (
            'name = "x"\n[[class]]\ncode = "a"\nlabel = "l"\nview = "ontological"\nparent = "b"',
            "must stand before",
        ),
        (
            'name = "x"\n[[class]]\ncode = "a"\nlabel = "l"\nview = "ontological"\nopposite = "b"',
            "opposite of a, is no class",
        ),
        ('name = "x"' + '\n[[class]]\ncode = "a"\nlabel = "l"\nview = "ontological"' * 2, "there twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=reason) as told:
        load_taxonomy(path)
    assert str(path) in str(told.value)


def test_names_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="'nova' is no class of scope; its classes are vnv"):
        load_taxonomy().of("nova")
    with pytest.raises(InputError, match=r"no taxonomy: name a file that ends in \.toml, or scope"):
        load_taxonomy("nonesuch")
    with pytest.raises(InputError, match="name a taxonomy file"):
        load_taxonomy("nonesuch.toml")


def test_views_are_not_mixed() -> None:
    entries = [
        {"code": "a", "label": "A", "view": "ontological"},
        {"code": "b", "label": "B", "view": "phenomenological", "parent": "a"},
    ]
    with pytest.raises(ValueError, match="different views"):
        Taxonomy.model_validate({"name": "x", "class": entries})
