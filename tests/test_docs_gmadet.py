"""The page for people who come from gmadet is complete, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from tapetum.core.settings import Settings
from tapetum.images.fits import write_frame
from tapetum.models.registry import ONNX_NAME
from tapetum.pipelines.completeness import measure, recover
from tapetum.pipelines.completeness_report import write_report
from tapetum.pipelines.cutouts import make_cutouts
from tapetum.pipelines.search import SearchOptions, search
from tapetum.pipelines.search_results import read_results
from tapetum.simulate.scene import SceneSettings, simulate_scene
from tapetum.simulate.truth import TRUTH_NAME, name_file, write_truth
from tapetum.surveys.telescopes import find_telescope

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "how-to" / "coming-from-gmadet.md").read_text()
COMMANDS = """gmadet-run gmadet-astrometry gmadet-stacking gmadet-psf gmadet-subBkg gmadet-cosmics gmadet-sim
    gmadet-cutouts gmadet-checksim gmadet-cnn_convert gmadet-cnn_train gmadet-cnn_infer gmadet-cnn_checkinfer"""
TELESCOPES = """FRAM-Auger FRAM-CTA-N IRIS KAIT Lisniky-AZT8 OAJ-T80 TCA TCH TRE UBAI-T60N UBAI-T60S PS1"""
DESCRIBED = {
    "Commands": COMMANDS,
    "Options that all commands have": """data --results --keep-old --keep --skip-processed --preprocess --telescope
        --conv-filter --astrometry --accuracy --itermax --verbose RESULTS/<subdir>/<stem>/<image>""",
    "gmadet-sim": """--results --telescope --ntrans --size --magrange --zp --gain simulated_objects.list idx filename
        Xpos Ypos RA Dec mag filter <stem>_psf.fits""",
    "gmadet-run": """--fwhm --radius-crossmatch --threshold --detect --threads --quadrants --sub --ps1-method --mosaic
        --remove-cosmics --sub-bkg --cnn_model --cnn_thres --doCutouts --cutouts-size --cutouts-size_cnn --cutouts-all
        --cutouts-fmt --output-data-level --owncloud --voe _SourcesDet.cat .magwcs .oc _sub.oc .alldetections
        .candidates _candidates.dat _ZP_<band>.png _ZP_<band>.dat substraction/*_sub.fits substraction/*_sub_mask.fits
        substraction/*_hotpants.sh Xpos Ypos _RAJ2000 _DEJ2000 mag_inst mag_calib mag_calib_err filter_cat edge psf_chi2
        FWHM FWHMPSF FlagSub filenames OriginalIma RefIma Match""",
    "gmadet-cutouts": """PATH --training --false --size --radius --flag-notsub candidates_list.dat ID RA Dec Xpos Ypos
        edge Band mag magerr FWHM FWHMPSF filename OriginalIma crossmatch.dat filename2 Nmatches closest_candID
        all_candIDs candidates_training/true candidates_training/false candidate_<i>.fits candidates MAG MAGERR FILTER
        XPOS YPOS FILE CANDID EDGE""",
    "gmadet-checksim": """PATH --radius CheckSim/ sim_mag_distrib_allbands.png detection_fraction_allbands.png
        sim_mag_distrib_<band>.png crossmatch.dat""",
    "gmadet-cnn_convert": """--path --cube --cutouts --frac_true datacube/CUBE.npz cube labels mags errmags filters
        candids""",
    "gmadet-cnn_train": "--cube --model-path --model-name --epochs --frac --dropout CNN_training/NAME.h5",
    "gmadet-cnn_infer": "--cutouts --model --prob-ratio infer_results.dat label0 label1",
    "gmadet-cnn_checkinfer": """--plots --crossmatch --infer --maglim --cnn-problim --fwhm-ratio-lower
        --fwhm-ratio-upper distrib_CNN_prob_sim.png distrib_CNN_prob_all.png distrib_CNNprob_all_and_sim.png
        fraction_per_bin.png distrib_FWHM_simulation.png distrib_FWHM_real_vs_sim.png""",
    "Telescopes": TELESCOPES,
}


def sections() -> dict[str, list[tuple[str, str, str]]]:
    """Rows (theirs, here, remark) of the page by heading."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    rows: list[tuple[str, str, str]] = []
    for line in PAGE.splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line[3:], [])
        elif line.startswith("| `"):
            _, theirs, here, remark, _ = (cell.strip() for cell in line.split("|"))
            rows.append((theirs.strip("`"), here, remark))
    return found


SECTIONS = sections()
ROWS = [(section, *row) for section, rows in SECTIONS.items() for row in rows]


def cli() -> Any:
    import typer

    from tapetum.cli.app import app

    return typer.main.get_command(app)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and the options that follow; None when there is no such command."""
    command = cli()
    rest = words[1:]
    while rest and not rest[0].startswith("-"):
        command = getattr(command, "commands", {}).get(rest[0])
        if command is None:
            return None, rest
        rest = rest[1:]
    return command, rest


def options_of(command: Any) -> set[str]:
    return {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)}


@pytest.mark.parametrize("section", DESCRIBED)
def test_everything_described_has_its_row(section: str) -> None:
    assert set(DESCRIBED[section].split()) - {theirs for theirs, _, _ in SECTIONS[section]} == set()


def test_every_row_says_something() -> None:
    assert len(ROWS) > 180
    for section, theirs, here, remark in ROWS:
        assert here == "none" or "`" in here, (section, theirs)
        assert here != "none" or remark, f"{section}, {theirs}: why not?"


@pytest.mark.parametrize("text", sorted(set(re.findall(r"`(tapetum [^`]+)`", PAGE))))
def test_commands_and_options_named_here_exist_unless_planned(text: str) -> None:
    command, options = command_of(text.split())
    planned = f"planned: `{text}`" in PAGE
    assert (command is None) == planned, f"{text}: {'exists now, say so' if planned else 'does not exist'}"
    if command is not None:
        assert set(options) - options_of(command) == set()


def test_commands_of_the_example_run() -> None:
    block = re.search(r"```\n(tapetum .*?)```", PAGE, re.DOTALL)
    assert block
    lines = block[1].strip().splitlines()
    assert len(lines) == 4
    for line in lines:
        words = line.split()
        command, rest = command_of([*words[:3], *(word for word in words if word.startswith("-"))])
        assert command is not None
        assert set(rest) <= options_of(command)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What the verbs of each section have written: files, columns, metadata, header keys of cutouts."""
    place = tmp_path_factory.mktemp("run")
    settings = SceneSettings(shape=(260, 260), stars=(20000, 20000), counts={"transient": (10, 10)})
    pair = simulate_scene(settings, np.random.default_rng(3), "field")
    for frame, name in ((pair.science, "field.fits"), (pair.reference, "ref.fits")):
        write_frame(
            place / name, frame.data, wcs=frame.wcs, header=frame.header, planes=frame.planes, product="f"
        )
    name_file(pair.truth, "field.fits")
    write_truth(place / TRUTH_NAME, pair.truth)
    out = place / "out"
    references = SearchOptions((str(place / "ref.fits"),))
    [outcome] = search([str(place / "field.fits")], out, references, Settings())
    assert outcome.problem is None
    results = read_results(out)
    make_cutouts(out, results)
    make_cutouts(out, results, training=True, rest_is_false=True)
    recovery = recover(results)
    recovery.injected["band"] = ["ztfg", "ztfr"] * (len(recovery.injected) // 2)  # as of images of two bands
    report = measure(recovery, np.random.default_rng(1))
    write_report(out / "completeness", report, [])
    crossed = columns_of(out / "crossmatch.dat")
    cutout = next((out / "candidates").glob("candidate_*.fits"))
    return {
        "gmadet-sim": {TRUTH_NAME} | columns_of(place / TRUTH_NAME),
        "gmadet-run": files_of(outcome.folder) | columns_of(outcome.folder / "candidates.ecsv"),
        "gmadet-cutouts": files_of(out)
        | files_of(out / "candidates")
        | {re.sub(r"_[0-9]+", "_<i>", cutout.name)}
        | columns_of(out / "candidates" / "candidates_list.dat")
        | crossed
        | set(fits.getheader(cutout)),
        "gmadet-checksim": files_of(out) | files_of(out / "completeness"),
    }


def files_of(folder: Path) -> set[str]:
    """Names of files and folders, and those of files without their suffixes."""
    names = {path.name for path in folder.iterdir()}
    return names | {name.split(".")[0] for name in names}


def columns_of(path: Path) -> set[str]:
    """Columns of a table, and the keys of its metadata."""
    table = Table.read(path, format="ascii.ecsv")
    return {*table.colnames, *table.meta}


def test_files_and_columns_named_here_are_written(written: dict[str, set[str]]) -> None:
    named = 0
    for section, theirs, here, _ in ROWS:
        if section not in written or here.startswith("planned"):
            continue
        for name in re.findall(r"`([^`]+)`", here):
            if not name.startswith(("tapetum ", "DIR")):
                named += 1
                assert name in written[section], f"{section}, {theirs}: {name}"
    assert named > 60


def test_sections_without_a_run_name_no_file_but_that_of_a_network(written: dict[str, set[str]]) -> None:
    sections = {*written, "Telescopes"}
    rest = [
        here for section, _, here, _ in ROWS if section not in sections and not here.startswith("planned")
    ]
    names = [
        name for here in rest for name in re.findall(r"`([^`]+)`", here) if not name.startswith("tapetum ")
    ]
    assert names == [ONNX_NAME]


@pytest.mark.parametrize("name", TELESCOPES.split())
def test_each_telescope_of_theirs_is_one_here(name: str) -> None:
    assert find_telescope(name).image is not None
