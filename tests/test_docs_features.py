"""The page of features is made from the code, and has every feature with formula, unit and source."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from tapetum.lightcurves.features import CHANGES, FEATURES, SETS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    path = ROOT / "docs" / "_ext" / "generated_reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_feature_has_a_row_with_formula_and_source(reference: ModuleType) -> None:
    page = reference.features_page()
    assert set(reference.SETS_OF_FEATURES) == set(SETS)
    parts = dict(re.findall(r"^## Set `(\w+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert set(parts) == set(SETS)
    for feature in FEATURES:
        name = f"{feature.name}_PERIOD" if feature.periodic else feature.name
        [row] = [line for line in parts[feature.of].splitlines() if line.startswith(f"| `{name}` |")]
        _, _, formula, unit, source, unchanged, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        assert formula.replace("\\|", "|") == feature.formula
        assert unit == feature.unit
        assert source
        assert set(filter(None, unchanged.split(", "))) <= set(CHANGES)


def test_the_page_is_written_with_the_others(reference: ModuleType, tmp_path: Path) -> None:
    class App:
        srcdir = str(tmp_path)

    reference.write_pages(App())
    assert (
        (tmp_path / "reference" / "generated" / "light-curve-features.md")
        .read_text()
        .startswith("# Features")
    )
