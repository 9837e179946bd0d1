"""One output per image: what is planned, what counts as finished, and what becomes of an image that fails."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from tapetum.core.errors import InputError, UsageError
from tapetum.core.settings import Settings
from tapetum.images.fits import files_of, image_name, path_of
from tapetum.pipelines.outputs import fingerprint, finished_run, settings_path
from tapetum.pipelines.steps import Command, Made, Step, name_outputs, plan_outputs, run_step


@pytest.fixture
def folder(tmp_path, rng):
    """A file of one image, and one of two."""
    data = rng.normal(100, 5, (20, 30)).astype(np.float32)
    fits.writeto(tmp_path / "one.fits", data)
    extensions = [fits.ImageHDU(data, name="SCI", ver=version) for version in (1, 2)]
    fits.HDUList([fits.PrimaryHDU(), *extensions]).writeto(tmp_path / "two.fits.gz")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "name", "file"),
    [
        ("night/a.fits.fz", "a", "night/a.fits.fz"),
        ("night/a.b.FIT[2]", "a.b_2", "night/a.b.FIT"),
        ("a.fits[SCI, 2][0]", "a_SCI_2_0", "a.fits"),
        ("a.fits[a b/c]", "a_a_b_c", "a.fits"),
    ],
)
def test_outputs_are_called_after_their_image(source, name, file):
    assert image_name(source) == name
    assert path_of(source) == Path(file)


def test_brackets_in_the_name_of_a_file_are_no_extension(tmp_path):
    (tmp_path / "a[1]").write_bytes(b"")
    assert path_of(f"{tmp_path}/a[1]") == tmp_path / "a[1]"
    assert path_of(f"{tmp_path}/b[1]") == tmp_path / "b"


def test_every_image_gets_an_output_of_its_own(folder):
    rejected = []
    sources = [str(folder / name) for name in ("one.fits", "two.fits.gz", "none.fits")]
    steps = plan_outputs(sources, folder / "out", ".x.fits", rejected.append)
    assert [step.output for step in steps] == [
        str(folder / "out" / name) for name in ("one.x.fits", "two_1.x.fits", "two_2.x.fits")
    ]
    assert len(rejected) == 1
    assert "none.fits" in rejected[0]


def test_no_two_images_share_an_output_and_none_is_an_input(folder):
    one, two = str(folder / "one.fits"), str(folder / "two.fits.gz")
    with pytest.raises(UsageError, match="cannot hold what 2 images become"):
        plan_outputs([two], folder / "x.fits", "", print, single=True)
    with pytest.raises(UsageError, match="is a folder"):
        plan_outputs([one], folder, "", print, single=True)
    with pytest.raises(UsageError, match="would both become"):
        name_outputs([f"{one}[1]", str(folder / "one_1.fits")], folder / "out", lambda _: ".fits")
    (folder / "link").symlink_to(folder)
    for out in (folder, folder / "link", folder / "out" / ".."):
        (folder / "out").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="would be overwritten"):
            plan_outputs([one], out, ".fits", print)


def test_what_decides_an_output_is_in_its_fingerprint(folder, tmp_path):
    other = str(folder / "two.fits.gz")
    step = Step(str(folder / "one.fits"), str(folder / "out.fits"))
    profiles = Path(os.environ["XDG_CONFIG_HOME"]) / "tapetum" / "surveys"

    def prints(**options):
        return Command("images align", {"onto": other, **options}, images=(f"{other}[1]",)).made_from(step)

    first = prints()
    assert prints() == first
    seen = {first, prints(telescope="ztf")}
    (folder / "one_mask.fits").write_bytes(b"a mask")
    seen.add(prints())
    (folder / "two_mask.fits").write_bytes(b"the mask of the other")
    seen.add(prints())
    profiles.mkdir(parents=True)
    (profiles / "mine.toml").write_text('name = "mine"\ntitle = "of a user"\n[image]\n')
    seen.add(prints())
    Path(other).write_bytes(b"another image")
    seen.add(prints())
    assert len(seen) == 6
    last = prints()
    Path(step.output).write_bytes(b"made")
    assert prints() == last
    assert folder / "one_mask.fits" in files_of([step.source])


def test_own_outputs_in_a_folder_of_inputs_do_not_count(tmp_path):
    before = fingerprint([tmp_path], {}, skip=[tmp_path / "out"])
    (tmp_path / "out" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "deep" / "file").write_text("made")
    assert fingerprint([tmp_path], {}, skip=[tmp_path / "out"]) == before
    (tmp_path / "in").write_text("given")
    assert fingerprint([tmp_path], {}, skip=[tmp_path / "out"]) != before


def maker(problems, threads):
    """Work that fails on some images."""

    def work(step):
        name = Path(step.source).name
        if name in problems:
            raise problems[name]
        Path(step.output).write_text(f"{threads}")
        return Made((f"{name} is fine",), "a number")

    return work


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_image_that_fails_is_named_and_stops_no_other(tmp_path, jobs):
    problems = {
        "a": InputError("night/a: stars are not subtracted"),
        "b": PermissionError(13, "not allowed", "/some/file"),
        "c": MemoryError(),
        "d": InputError("d: has its name"),
    }
    steps = [Step(name, str(tmp_path / name)) for name in "abcde"]
    results = list(run_step(steps, partial(maker, problems), jobs=jobs))
    assert [result.problem for result in results] == [
        "a: night/a: stars are not subtracted",
        "b: /some/file: not allowed",
        "c: MemoryError",
        "d: has its name",
        None,
    ]
    assert results[4].made == Made(("e is fine",), "a number")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["e"]


def test_one_image_gets_the_workers_as_threads(tmp_path):
    list(run_step([Step("a", str(tmp_path / "a"))], partial(maker, {}), jobs=3))
    assert (tmp_path / "a").read_text() == "3"


def test_an_output_that_is_made_anew_is_not_finished_until_it_is(tmp_path):
    step = Step("a", str(tmp_path / "a"))
    command = Command("images align", {"onto": "b", "telescope": None})
    made_from = command.made_from(step)
    list(run_step([step], partial(maker, {})))
    command.record(step, Settings(), made_from)
    assert finished_run(step.output, made_from) is not None
    assert finished_run(step.output, "of another") is None
    made = Made(failed=("b: no",), files=(tmp_path / "more",))  # which is not there
    command.record(step, Settings(), made_from, made)
    assert finished_run(step.output, made_from).complaints == ["b: no"]
    assert finished_run(step.output, made_from, further=True) is None
    made.files[0].write_text("more")
    command.record(step, Settings(), made_from, made)
    assert finished_run(step.output, made_from, further=True) is not None
    made.files[0].write_text("changed")
    assert finished_run(step.output, made_from, further=True) is None
    assert finished_run(step.output, made_from) is not None
    Path(step.output).write_text("changed as well")
    assert finished_run(step.output, made_from) is None
    list(run_step([step], partial(maker, {"a": InputError("no")})))
    assert not settings_path(Path(step.output)).exists()
    assert finished_run(step.output, made_from) is None
