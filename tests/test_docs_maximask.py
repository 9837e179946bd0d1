"""The page for people who come from MaxiMask is complete, and what it names here exists."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from tapetum.finders.contaminants import Config, Contaminants
from tapetum.images.contaminants import NAMES, TITLES, code_of
from tapetum.images.mask_files import mask_name
from tapetum.models.card import ClassSpec, FrameContract
from tapetum.pipelines.mask import CLASS_FILES, DTYPES, MaskOptions, mask_file
from tapetum.pipelines.steps import Step

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "how-to" / "coming-from-maximask.md").read_text()
DESCRIBED = {
    "Commands": "maximask | maxitrack | pip install MaxiMask | tensorflow",
    "Images that are named": "im_path | file.fits[nb_hdu] | file.fits | directory | file.list | .fits.fz | .fits.gz",
    "maximask": """--help | --net_dir | --config_dir | --prior_modif | --proba_thresh | --single_mask | --batch_size
        | --verbose""",
    "Configuration files": "classes.flags | classes.priors | classes.thresh",
    "Classes": "CR | HCL | DCL | HP | DP | P | STL | TRL | FR | NEB | SAT | SP | OV | BBG | BG",
    "Files of masks": """file.masks.fits | file.masks<nb_hdu>.fits | uint8 maps | float32 maps | single mask
        | same HDU structure""",
    "Headers of masks": "MM_UTC | MM_LOC | PRIORS | THRESH | SMASK | CR | CR_DIM | CR_PR | CR_TH | CR_SM",
    "How masks come about": """tiles of 400 pixels | normalisation | prior modification | thresholding | NaN
        | constant image | several files at a time""",
    "maxitrack": """--help | --net_dir | --prior | --frac | --batch_size | --verbose | maxitrack.out | probability
        | tiles | first tile at n mod 400""",
}


def sections() -> dict[str, list[tuple[str, str, str]]]:
    """Rows (theirs, here, remark) of the page by heading."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if line.startswith("| `"):
            theirs, here, remark = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(heading, []).append((theirs.strip("`"), here, remark))
    return found


SECTIONS = sections()


@pytest.mark.parametrize("section", DESCRIBED)
def test_everything_described_has_its_row(section: str) -> None:
    described = {name.strip() for name in DESCRIBED[section].split("|")}
    assert described - {theirs for theirs, _, _ in SECTIONS[section]} == set()


@pytest.mark.parametrize("command", ["maximask", "maxitrack"])
def test_all_that_the_original_says_of_itself_is_described(real_data: Path, command: str) -> None:
    texts = [path.read_text() for path in (real_data.parent / "seeds").glob("004*.txt")]
    if not texts:
        pytest.skip("the description of MaxiMask is not beside the shared data")
    [text] = texts
    usage = re.search(rf"usage: {command} (.*?)\n\n.*?optional arguments:\n(.*?)\n\n", text, re.DOTALL)
    assert usage
    options = set(re.findall(r"--[a-z_]+", usage[1] + usage[2]))
    assert len(options) >= 6
    assert {"-v, --verbose", "-h, --help"} <= set(re.findall(r"^ +(-\w, --\w+)", usage[2], re.MULTILINE))
    described = {name.strip() for name in DESCRIBED[command].split("|")}
    assert options - described == set()
    assert {name for name in described if name.startswith("--")} - options == set()


def test_all_files_and_classes_of_the_original_are_described(real_data: Path) -> None:
    texts = [path.read_text() for path in (real_data.parent / "seeds").glob("004*.txt")]
    if not texts:
        pytest.skip("the description of MaxiMask is not beside the shared data")
    [text] = texts
    everything = {name.strip() for names in DESCRIBED.values() for name in names.split("|")}
    files = set(re.findall(r"\bclasses\.[a-z]+|\bmaxitrack\.out|\bfile\.[a-z<>_.]*fits(?!\.)", text))
    files |= set(re.findall(r"\.fits\.[fg]z\b", text))
    assert {"classes.flags", "maxitrack.out", "file.masks.fits", "file.masks<nb_hdu>.fits"} <= files
    assert files - everything == set()
    classes = set(re.findall(r"^([A-Z]{1,3}) [A-Za-z/ ]+ \d+$", text, re.MULTILINE))
    classes |= set(re.findall(r"^([A-Z]{1,3}) +<flag\|prior\|threshold>$", text, re.MULTILINE))
    assert classes == {name.strip() for name in DESCRIBED["Classes"].split("|")}


def test_every_row_says_something() -> None:
    assert set(SECTIONS) == set(DESCRIBED)
    for section, rows in SECTIONS.items():
        for theirs, here, remark in rows:
            assert here == "none" or "`" in here, (section, theirs)
            assert here != "none" or remark, f"{section}, {theirs}: why not?"


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and what is left of them."""
    import typer

    from tapetum.cli.app import app

    command, rest = typer.main.get_command(app), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


@pytest.mark.parametrize("text", sorted(set(re.findall(r"`(tapetum [^`]+)`", PAGE))))
def test_commands_and_options_named_here_exist(text: str) -> None:
    command, options = command_of(text.split())
    known = {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)} | {"--help"}
    assert set(options) - known == set()


def written(folder: Path, output: str, classes: tuple[ClassSpec, ...]) -> fits.Header:
    """Header of masks as they are written, by a network that finds nothing."""
    contract = FrameContract(name="x", multiple=32)
    card = SimpleNamespace(
        name="nothing", version="1.0.0", onnx_sha256="0" * 64, classes=classes, frame=contract,
        source=SimpleNamespace(sha256=None),
    )  # fmt: skip

    def maps(images: np.ndarray, core: tuple[slice, slice]) -> np.ndarray:
        scores = np.full((len(images), len(classes), *images.shape[2:]), 0.001, np.float32)
        return scores[:, :, *core]

    model = SimpleNamespace(card=card, maps=maps)
    options = MaskOptions(config=Config(), output=output)
    step = Step(str(folder / "file.fits"), str(folder / f"{output}.fits"))
    mask_file(step, Contaminants(model, options.config), options)
    with fits.open(step.output) as parts:
        assert parts[0].data.dtype.newbyteorder("=") == DTYPES[output]
        return parts[0].header.copy()


def test_files_and_keywords_named_here_are_written(tmp_path: Path, rng: np.random.Generator) -> None:
    fits.writeto(tmp_path / "file.fits", rng.normal(100, 5, (40, 50)))
    classes = tuple(
        ClassSpec(
            name=name, title=TITLES[name], code=code_of(name), training_prior=0.1, prior=0.1, threshold=0.5
        )
        for name in NAMES
    )
    headers = {output: written(tmp_path, output, classes) for output in DTYPES}
    named = {
        "Configuration files": set(CLASS_FILES.values()),
        "Classes": set(NAMES),
        "Files of masks": {f"{mask_name('file.fits')}.fits", "file.masks2.fits", *DTYPES.values()},
        "Headers of masks": set(headers["planes"]) | set(headers["codes"]),
        "How masks come about": set(headers["planes"]),
    }
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(), fits.ImageHDU(np.eye(3))]).writeto(tmp_path / "m.fits")
    assert mask_name(tmp_path / "m.fits[2]") == "m.masks2"
    for section, names in named.items():
        for theirs, here, _ in SECTIONS[section]:
            for name in re.findall(r"`([^`]+)`", here):
                assert name in names or name.startswith("tapetum "), f"{section}, {theirs}: {name}"
    besides = re.search(r"Ours besides: (.*)", PAGE)
    assert besides
    keywords = set(re.findall(r"`([A-Z_]+)`", besides[1])) - {"NFAILED"}
    assert len(keywords) == 8
    assert keywords - set(headers["planes"]) == set()


def test_codes_are_those_of_the_description() -> None:
    for theirs, here, remark in SECTIONS["Classes"]:
        assert int(remark.partition(";")[0]) == code_of(here.strip("`")), theirs
