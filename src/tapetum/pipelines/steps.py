"""Steps that make one output per image: what is to be made, whether it is there, who makes it, what became of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tapetum.core.errors import TapetumError, UsageError
from tapetum.images.fits import files_of, image_name, list_images, path_of
from tapetum.pipelines.outputs import (
    STDOUT,
    check_output,
    fingerprint,
    own_files,
    record_settings,
    settings_path,
)
from tapetum.pipelines.runner import run_over
from tapetum.surveys.profile import user_profiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from tapetum.core.settings import ClusterSettings, Settings

    Work = Callable[["Step"], "Made"]

WARNING = "warning: "  # begins what the steps of a search say, where the user should know it
TROUBLE = (TapetumError, OSError, MemoryError)  # what one image may fail with, while the others go on


@dataclass(frozen=True)
class Step:
    """One image, and what is made of it.

    Attributes
    ----------
    source
        As `tapetum.images.fits.read_frame` takes it.
    output
        The file to write; ``-`` is stdout.
    """

    source: str
    output: str


@dataclass(frozen=True)
class Made:
    """What is to be told of an output.

    Attributes
    ----------
    said
        What was measured or assumed on the way; a line that begins with ``warning:`` is one.
    summary
        What is in it, in words.
    failed
        What is not in it that was asked for, and why; the image counts as failed, also when it is asked for again.
    files
        Further files beside the output that belong to it.
    """

    said: tuple[str, ...] = ()
    summary: str = ""
    failed: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Done:
    """What became of one image.

    Attributes
    ----------
    step
        From where to where.
    made
        Of the output; empty where there is none.
    problem
        Why there is no output; None when there is one.
    """

    step: Step
    made: Made = Made()
    problem: str | None = None


@dataclass(frozen=True)
class Command:
    """What decides the outputs beside the images themselves.

    Attributes
    ----------
    verb
        For instance ``images align``.
    options
        By name; values that one section of TOML can hold, or None.
    images
        Further images that decide, for instance the one that others are aligned onto; with their masks.
    files
        Further files and folders that decide.
    """

    verb: str
    options: Mapping[str, Any]
    images: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @cached_property
    def _shared(self) -> str:
        return fingerprint(
            [*files_of(self.images), *self.files, *profile_files(self.options.get("telescope"))],
            {"verb": self.verb, **self.options},
        )

    def made_from(self, step: Step) -> str:
        """Fingerprint of all that decides one output."""
        options = {"source": step.source, "shared": self._shared}
        return fingerprint(files_of([step.source]), options, own_files(step.output))

    def record(self, step: Step, settings: Settings, made_from: str, made: Made = Made()) -> None:
        """Say beside a new output what made it; from then on it is finished."""
        if step.output != STDOUT:
            words = {"verb": self.verb, "input": step.source, **self.options}
            output = Path(step.output)
            files = [output, *made.files]
            record_settings(output, settings, words, made_from, made.failed, n_done=1, files=files)


def profile_files(telescope: str | None) -> list[Path]:
    """Files of telescope profiles that may decide how an image is read; those that we ship go with the version."""
    own = [Path(telescope)] if telescope and Path(telescope).is_file() else []
    return [*own, *user_profiles().values()]


def planes_of(sources: Iterable[str]) -> list[str]:
    """Every image of every file, so that each is worked on by itself; a file that cannot be read stays as it is."""
    found: list[str] = []
    for source in sources:
        try:
            found += list_images(source)
        except TROUBLE:  # working on it will say why
            found.append(source)
    return list(dict.fromkeys(found))


def plan_outputs(
    sources: Iterable[str],
    out: str | Path,
    suffix: str,
    rejected: Callable[[str], None],
    *,
    single: bool = False,
) -> list[Step]:
    """A step for every image of these files: each extension, and each plane of a cube.

    Parameters
    ----------
    sources
        See `tapetum.images.fits.expand_sources`.
    out
        Folder, in which extension 2 of ``X.fits`` becomes ``X_2`` and the suffix; or the file, where `single`.
    rejected
        Told of files that hold no image.
    single
        `out` is a file, or ``-`` for stdout.

    Raises
    ------
    UsageError
        One file for several images, two images of one name, or an output that is an input.
    """
    images: list[str] = []
    for source in sources:
        try:
            images += list_images(source)
        except TROUBLE as problem:
            rejected(reason(source, problem))
    if single:
        check_output(str(out))
        if len(images) > 1:
            raise UsageError(f"{out}: one file cannot hold what {len(images)} images become; name a folder")
        steps = [Step(image, str(out)) for image in images]
        spare_inputs(steps)
        return steps
    return name_outputs(images, Path(out), lambda _: suffix)


def name_outputs(images: Iterable[str], folder: Path, suffix: Callable[[str], str]) -> list[Step]:
    """A step for each image; its output is called after it.

    Raises
    ------
    UsageError
        Two images of one name, or an output that is an input.
    """
    planned: dict[str, str] = {}
    for image in images:
        output = str(folder / (image_name(image) + suffix(image)))
        if output in planned:
            raise UsageError(
                f"{planned[output]} and {image} have the same name and would both become {output};"
                " use different folders"
            )
        planned[output] = image
    steps = [Step(image, output) for output, image in planned.items()]
    spare_inputs(steps)
    return steps


def spare_inputs(steps: Sequence[Step], others: Iterable[str | Path] = ()) -> None:
    """Raise UsageError when an output is the file of an image of `steps`, or one of `others`."""
    inputs = {path_of(source).resolve() for source in (*(step.source for step in steps), *others)}
    for step in steps:
        if step.output != STDOUT and Path(step.output).resolve() in inputs:
            raise UsageError(f"{step.output}: is an input, and would be overwritten; choose another output")


def run_step(
    steps: Sequence[Step],
    setup: Callable[[int], Work],
    *,
    jobs: int = 1,
    scheduler: str = "local",
    cluster: ClusterSettings | None = None,
) -> Iterator[Done]:
    """Make each output; an image that fails is told in its `Done`, and stops no other.

    Parameters
    ----------
    steps
        Outputs that are made; what was said beside an older one is removed when the work on it begins.
    setup
        Called once per worker with the number of its threads; returns the function that makes one output. It must be
        picklable: a function of a module, or a partial of one.
    jobs
        Workers for several images, threads for one.
    scheduler, cluster
        As in `run_over`.

    Raises
    ------
    TapetumError
        What `setup` raised, or that a worker died.
    """
    if any(step.output == STDOUT for step in steps):
        scheduler = "local"  # stdout is that of this process
    alone = len(steps) == 1 and scheduler == "local"
    n_workers = 1 if alone else max(min(jobs, len(steps)), 1)
    worker = partial(_worker, setup, jobs if alone else 1)
    for _, done in run_over(steps, worker, n_workers, scheduler=scheduler, cluster=cluster):
        yield done


def _worker(setup: Callable[[int], Work], threads: int) -> Callable[[Step], Done]:
    return partial(_attempt, setup(threads))


def _attempt(work: Work, step: Step) -> Done:
    try:
        if step.output != STDOUT:  # an output that is made anew is not finished work any more
            settings_path(Path(step.output)).unlink(missing_ok=True)
        return Done(step, work(step))
    except TROUBLE as problem:
        return Done(step, problem=reason(step.source, problem))


def reason(source: str, problem: BaseException) -> str:
    """Why an image failed, with its name."""
    text = str(problem)
    if isinstance(problem, OSError):
        text = ": ".join(str(part) for part in (problem.filename, problem.strerror or problem) if part)
    return told(source, text or type(problem).__name__)


def told(source: str, text: str) -> str:
    """What is said of an image, with its name where that is not in it already."""
    named = re.search(rf"(?<![\w./-]){re.escape(source)}(?!\w)", text)  # not as the end of another name
    return text if named else f"{source}: {text}"
