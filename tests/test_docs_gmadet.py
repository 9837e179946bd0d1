"""The page for people who come from gmadet is complete, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

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


def test_files_and_columns_named_here_are_written() -> None:
    code = "".join(path.read_text() for path in (ROOT / "src" / "tapetum").rglob("*.py"))
    for section, theirs, here, _ in ROWS:
        if section == "Telescopes" or here.startswith("planned"):
            continue
        for name in re.findall(r"`([^`]+)`", here):
            if name.startswith(("tapetum ", "DIR")):
                continue
            word = re.sub(r"<\w+>.*", "", name)
            assert re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}", code), f"{section}, {theirs}: {name}"


@pytest.mark.parametrize("name", TELESCOPES.split())
def test_each_telescope_of_theirs_is_one_here(name: str) -> None:
    assert find_telescope(name).image is not None
