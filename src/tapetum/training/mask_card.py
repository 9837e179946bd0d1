"""The card of a network that masks contaminants: classes with priors and thresholds, figures. Without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tapetum.images.contaminants import NAMES, TITLES, code_of
from tapetum.models.calibration import sigmoid
from tapetum.models.card import (
    ClassSpec,
    DataSet,
    Golden,
    ModelCard,
    Output,
    SyntheticFrames,
)
from tapetum.models.golden import golden_projections, golden_rows, synthetic_frames
from tapetum.models.runtime import Model
from tapetum.training.mask_metrics import (
    N_BINS,
    Tally,
    Truth,
    as_logits,
    best_cut,
    draws_of,
    figures_of,
    histogram,
    tally,
)
from tapetum.training.record import SPLIT, card_body, join_keys
from tapetum.training.report import as_metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import date
    from pathlib import Path

    from numpy.typing import NDArray

    from tapetum.training.datasets import Key
    from tapetum.training.mask_data import MaskExample
    from tapetum.training.mask_recipe import MaskRecipe
    from tapetum.training.split import Role

OUTPUT = "probability"  # of the ONNX file
GOLDEN = SyntheticFrames(seed=20264, count=4, size=128)
GOLDEN_TOLERANCE = 1e-4  # of means over pixels; other machines multiply in another order
TILES_OF = "tiles of "  # how the description of real data begins
LEAST_SHARE = 1e-8  # of pixels, that a class may have as its prior


def describe(
    recipe: MaskRecipe,
    onnx: Path,
    sets: Mapping[Role, Sequence[MaskExample]],
    keys: Mapping[Role, Sequence[Sequence[Key]]],
    today: date,
) -> ModelCard:
    """The card of an exported network.

    Parameters
    ----------
    recipe
        That it was made by.
    onnx
        ``model.onnx``.
    sets
        Examples of the validation part, which give priors and thresholds, and of the test part, which give figures.
    keys
        All examples by role and source.
    today
        Date of the card.
    """
    bare = ModelCard(**_body(recipe, onnx, keys, today))
    model = Model(bare, onnx.read_bytes(), str(onnx))
    maps = model.maps(synthetic_frames(GOLDEN))
    golden = Golden(
        frames=GOLDEN,
        outputs=tuple(map(tuple, golden_rows(maps).tolist())),
        projections=tuple(map(tuple, golden_projections(maps).tolist())),
        tolerance=GOLDEN_TOLERANCE,
    )
    classes = classes_of(model, sets["validation"])
    tallies = [tally_of(model, example, classes) for example in sets["test"]]
    figures = figures_of(draws_of(tallies, [entry.training_prior for entry in classes]))
    metrics = {
        f"{name}_{key}": as_metric(figure, f"test part, {len(tallies)} frames")
        for name, each in figures.items()
        for key, figure in each.items()
        if math.isfinite(figure.value)
    }
    update: dict[str, Any] = {"golden": golden, "classes": classes, "metrics": metrics}
    return ModelCard.model_validate(bare.model_copy(update=update).model_dump())


def _body(
    recipe: MaskRecipe, onnx: Path, keys: Mapping[Role, Sequence[Sequence[Key]]], today: date
) -> dict[str, Any]:
    data = tuple(_data_sets(keys, recipe.card.citations))
    split = SPLIT + "; real frames by the name of their file without suffixes"
    return {
        **card_body(recipe, onnx, data, today, split=split),
        "finder": "contaminants",
        "inputs": (recipe.input,),
        "outputs": (Output(name=OUTPUT, columns=NAMES, activation="sigmoid", per="pixel"),),
    }


def _data_sets(
    keys: Mapping[Role, Sequence[Sequence[Key]]], citations: Mapping[str, str]
) -> Iterable[DataSet]:
    for role, sources in keys.items():
        used = join_keys(sources)
        for origin in ("simulated", "frames"):
            names = [key.object_id for key in used if key.origin == origin]
            if not names:
                continue
            images = ", ".join(sorted({name.partition(":")[0] for name in names}))
            yield DataSet(
                name=origin,
                n=len(names),
                role="training" if role == "fit" else "validation" if role == "validation" else "test",
                description="frames of 512 x 512 pixels" if origin == "simulated" else TILES_OF + images,
                citation=citations.get(origin),
            )


def images_named(entry: DataSet) -> list[str]:
    """The images whose tiles are a data set."""
    return entry.description.removeprefix(TILES_OF).split(", ")


def classes_of(model: Model, frames: Sequence[MaskExample]) -> tuple[ClassSpec, ...]:
    """Classes of a calibrated network: as prior their share of the pixels, as threshold the best for the MCC."""
    total = np.zeros((2, len(NAMES), N_BINS), np.int64)
    for example in frames:
        total += histogram(logits_of(model, example.image), example.truth, example.unknown)
    classes = []
    for i, name in enumerate(NAMES):
        out, inside = total[0, i].astype(float), total[1, i].astype(float)
        share = float(np.clip(inside.sum() / (inside + out).sum(), LEAST_SHARE, 1 - LEAST_SHARE))
        classes.append(
            ClassSpec(
                name=name,
                title=TITLES[name],
                code=code_of(name),
                training_prior=share,
                prior=share,
                threshold=float(sigmoid(np.array([best_cut(out, inside)]))[0]),
            )
        )
    return tuple(classes)


def logits_of(model: Model, image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Logits of the probabilities that a network gives a normalised frame, shape (n_classes, n_y, n_x)."""
    return as_logits(model.maps(image.astype(np.float32)[None, None])[0])


def tally_of(model: Model, example: MaskExample, classes: Sequence[ClassSpec]) -> Tally:
    """What one example says of a network whose scores are cut at the thresholds of its classes."""
    maps = model.maps(example.image.astype(np.float32)[None, None])[0]
    flagged = np.zeros(example.truth.shape, np.uint16)
    for i, entry in enumerate(classes):
        flagged |= (maps[i] > np.float32(entry.threshold)) * np.uint16(1 << i)
    truth = Truth(example.truth, example.unknown, example.trails)
    return tally(example.name, example.name, as_logits(maps), flagged, truth)
