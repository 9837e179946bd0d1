"""Features of a catalogue that LSDB has opened are those of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tapetum.core.errors import InputError
from tapetum.core.settings import Settings
from tapetum.lightcurves.curves import LightCurves
from tapetum.lightcurves.formats.hats import write_hats
from tapetum.lightcurves.formats.opening import open_curves
from tapetum.lightcurves.formats.sources import Given
from tapetum.pipelines.lightcurve_features import FeatureOptions, feature_recipe
from tapetum.pipelines.lightcurve_lsdb import features_of_catalog
from tapetum.pipelines.lightcurve_parts import make_once, parts_of
from tapetum.report.read_tables import read_table

pytestmark = [  # what LSDB and pandas say to each other
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
OPTIONS = FeatureOptions(("scope", "tapetum"), given=("period",))


@pytest.fixture(scope="module")
def lsdb() -> Any:
    return pytest.importorskip("lsdb", reason="lsdb of the extra `cluster` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of several partitions, with a curve that is too short."""
    rng = np.random.default_rng(8)
    n = 30
    sizes = [20 if k == 7 else 70 for k in range(n)]
    times = [np.sort(rng.uniform(0, 300, size)) for size in sizes]
    table = {
        "lc_id": [f"c{k}" for k in range(n)],
        "object_id": [f"s{k // 2}" for k in range(n)],
        "band": ["ztfg", "ztfr"] * (n // 2),
        "ra": [12.0 * (k // 2) for k in range(n)],
        "dec": [10.0] * n,
        "period": [0.4 + k for k in range(n)],
    }
    mags = [18 + 0.2 * np.sin(2 * np.pi * t / p) for t, p in zip(times, table["period"], strict=True)]
    curves = LightCurves.of_lists(times, mags, [np.full(t.size, 0.02) for t in times], pa.table(table))
    path = tmp_path_factory.mktemp("hats") / "curves"
    write_hats(Given("curves", curves), path, most_rows=8)
    return path


def test_a_catalogue_of_lsdb_has_the_features_of_the_command_line(
    lsdb: Any, folder: Path, tmp_path: Path
) -> None:
    source = open_curves(folder)
    assert len(source.parts()) > 3
    output = str(tmp_path / "f.parquet")
    make_once(parts_of([source]), feature_recipe([str(folder)], OPTIONS), output, Settings())
    ours = read_table(output)
    catalog = features_of_catalog(lsdb.open_catalog(str(folder)), OPTIONS)
    assert list(catalog.columns) == ours.column_names
    theirs = pa.Table.from_pandas(catalog.compute(progress_bar=False).reset_index())
    order = [theirs["lc_id"].to_pylist().index(lc_id) for lc_id in ours["lc_id"].to_pylist()]
    for name in ours.column_names:
        assert theirs[name].take(order).to_pylist() == ours[name].to_pylist(), name
    assert ours["kept"].to_pylist().count(False) == 1
    assert "_healpix_29" in theirs.column_names


def test_a_cone_of_it_has_the_same_rows(lsdb: Any, folder: Path) -> None:
    whole = features_of_catalog(lsdb.open_catalog(str(folder)), OPTIONS).compute(progress_bar=False)
    cone = lsdb.open_catalog(str(folder)).cone_search(ra=24.0, dec=10.0, radius_arcsec=60)
    found = features_of_catalog(cone, OPTIONS).compute(progress_bar=False)
    assert sorted(found["lc_id"]) == ["c4", "c5"]
    expected = whole[whole["lc_id"].isin(["c4", "c5"])]
    assert found["wstd"].tolist() == expected["wstd"].tolist()


def test_a_catalogue_without_light_curves_is_refused(lsdb: Any) -> None:
    pandas = pytest.importorskip("pandas")
    catalog = lsdb.from_dataframe(pandas.DataFrame({"ra": [1.0], "dec": [2.0], "x": [3]}))
    with pytest.raises(InputError, match="a partition of the catalogue"):
        features_of_catalog(catalog, OPTIONS)
