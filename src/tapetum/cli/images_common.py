"""What the verbs share that make one output per image: which images, which are done, what is said, how it ends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tapetum.cli.common import NO_IMAGES, progress_bar, report_rejections, say, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tapetum.core.settings import Settings
    from tapetum.pipelines.steps import Command, Done, Made, Step


def is_image_file(out: Path) -> bool:
    """Whether ``-o`` names the image to write, not a folder."""
    return re.search(r"\.fits(\.fz|\.gz)?$", out.name, re.IGNORECASE) is not None and not out.is_dir()


def planned(
    images: Sequence[str], out: str | Path, suffix: str, *, single: bool, product: str = "frame"
) -> tuple[list[Step], list[str]]:
    """What is to be made of the images that a verb was given, and what is wrong with some of them.

    `product` says which images of our own are taken from folders.
    """
    from tapetum.images.fits import expand_sources
    from tapetum.pipelines.steps import plan_outputs

    problems: list[str] = []
    sources = expand_sources(images, product=product, rejected=problems.append)
    return plan_outputs(sources, out, suffix, problems.append, single=single), problems


def carry_out(
    plan: tuple[list[Step], list[str]],
    command: Command,
    setup: Callable[[int], Callable[[Step], Made]],
    settings: Settings,
    *,
    title: str,
    done: str,
    overwrite: bool,
    further: Callable[[int], Callable[[Step], Made]] | None = None,
) -> None:
    """Make what is not finished, say what became of each image, and end with the exit status for some or for all.

    Parameters
    ----------
    plan
        As `planned` gives it.
    command
        What decides the outputs beside the images.
    setup
        As `tapetum.pipelines.steps.run_step` takes it.
    title
        Of the progress bar.
    done
        What the verb does, for instance ``aligned``.
    further
        Makes the files that belong to an output which is finished itself; None where there are none.

    Raises
    ------
    PartialFailureError, InputError
        Some images failed, or all.
    UsageError
        An output is an input.
    """
    from dataclasses import replace
    from functools import partial
    from itertools import chain

    from tapetum.pipelines.steps import run_step, spare_inputs

    steps, problems = plan
    spare_inputs(steps, [*command.images, *command.files])
    made_from = {
        step: command.made_from(step) for step in steps
    }  # before the work: inputs may change meanwhile
    todo, rest, before = _unfinished(made_from, overwrite=overwrite, further=further is not None)
    problems += [problem for complaints in before.values() for problem in complaints]
    n_done = len(steps) - len(todo) - len(rest)
    run = partial(run_step, jobs=settings.jobs, scheduler=settings.scheduler, cluster=settings.cluster)
    with progress_bar(title) as progress:
        results = chain(run(todo, setup), run(rest, further or setup))
        for number, result in enumerate(results, 1):
            progress(number, len(todo) + len(rest))
            if result.problem is not None:
                problems.append(result.problem)
                continue
            n_done += 1
            problems += result.made.failed
            failed = result.made.failed or before.get(result.step, ())
            command.record(result.step, settings, made_from[result.step], replace(result.made, failed=failed))
            _tell(result)
    end(problems, n_done, done)


def _unfinished(
    made_from: Mapping[Step, str], *, overwrite: bool, further: bool
) -> tuple[list[Step], list[Step], dict[Step, tuple[str, ...]]]:
    """What is still to do, of what only further files are missing, and what failed in work that is finished."""
    from tapetum.pipelines.outputs import finished_run

    todo, rest, before = [], [], {}
    for step, fingerprint in made_from.items():
        run = None if overwrite else finished_run(step.output, fingerprint)
        if run is None:
            todo.append(step)
            continue
        before[step] = tuple(run.complaints)
        if further and finished_run(step.output, fingerprint, further=True) is None:
            rest.append(step)
        else:
            say(f"{step.output}: finished already; --overwrite makes it again")
    return todo, rest, before


def _tell(result: Done) -> None:
    from tapetum.pipelines.steps import WARNING, told

    step, made = result.step, result.made
    for text in made.said:
        speak = warn if text.startswith(WARNING) else say
        speak(told(step.source, text.removeprefix(WARNING)))
    say(f"{step.source}{f': {made.summary}' if made.summary else ''} -> {step.output}")


def end(problems: Sequence[str], n_done: int, done: str) -> None:
    """Name what failed, and end with the exit status for some or for all.

    Raises
    ------
    PartialFailureError
        Some images failed.
    InputError
        All images failed, or there was none.
    """
    report_rejections(problems, len(problems), n_done, things="images", nothing=NO_IMAGES, done=done)
