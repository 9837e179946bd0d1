"""The network `contaminants` in low precision: what its masks lose, and what that gains.

Frames are simulated under names of the test part, which no training uses. Each is masked by the finder as users get it,
with the card's priors and thresholds; only the arithmetic of the network differs:

float32
    onnxruntime; what the others are compared with.
bfloat16
    OpenVINO, where it is installed and the processor can (`tapetum images mask --runtime openvino`).
int8
    onnxruntime: convolutions with 8 bits per weight, scaled for each output channel, and 8 bits per activation, scaled
    for what was met on simulated frames of the fit part. The first layers, which take unbounded values, and those that
    give the logits stay in float32, and so does all that is no convolution: arcsinh, sums, sigmoid.

The differences of the Matthews correlation have 95 % intervals from resampling frames. Time is that of the processor,
of one thread, with the normalisation: other work on the machine counts little. `--stages` says which part of the
network int8 harms: each alone is quantised, those that stay in float32 too.

    OMP_NUM_THREADS=1 python -m benchmarks.precision [--model NAME|PATH] [--frames 64] [--calibration 16]
                                                     [--float PART ...] [--stages]
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from benchmarks.common import machine
from tapetum.finders.contaminants import MODEL, Config, Contaminants, load
from tapetum.images.contaminants import NAMES
from tapetum.images.normalise import normalise
from tapetum.models.runtime import Model
from tapetum.training.datasets import simulated_ids
from tapetum.training.mask_compare import frames_of
from tapetum.training.mask_data import draw
from tapetum.training.mask_metrics import TRUE, Draws, mcc, overlap, weights_of
from tapetum.training.mask_recipe import MaskRecipe
from tapetum.training.recipe import load_any_recipe

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.training.mask_compare import FrameWithTruth

    Image = NDArray[np.float32]
    Bits = NDArray[np.uint16]
    Counts = NDArray[np.int64]

RECIPE = "contaminants"
REFERENCE = "float32"
FLOAT = ("sharp.0", "points.0", "head", "point_head")
"""Parts of the network that stay in float32: few multiplications, and most of what int8 would lose."""

N_RESAMPLED, SEED = 400, 0
STAGE_FRAMES, STAGE_CALIBRATION = 8, 4  # of `stages`
ENOUGH = 200  # pixels of a class, for its overlap to say something of a part of the network


class CalibrationFrames:
    """Normalised frames as onnxruntime asks for them; their sides are multiples of the network's."""

    def __init__(self, name: str, frames: Iterable[Image]) -> None:
        self._name = name
        self._frames = iter(frames)

    def get_next(self) -> dict[str, Image] | None:
        """Input of the network, or None when there is no more."""
        frame = next(self._frames, None)
        return None if frame is None else {self._name: frame[None, None]}


@dataclass(frozen=True)
class Answer:
    """What one precision made of all frames.

    Attributes
    ----------
    counts : ndarray of int64, shape (n_frames, n_classes, 8)
        As in `tapetum.training.mask_metrics.Tally`.
    both, either : ndarray of int64, shape (n_classes,)
        Pixels that this mask and that of `REFERENCE` have; that one of them has.
    seconds
        Of the processor, for a million pixels.
    """

    counts: Counts
    both: Counts
    either: Counts
    seconds: float

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union with the mask of `REFERENCE`; NaN where neither has a pixel."""
        return np.where(self.either > 0, self.both / np.maximum(self.either, 1), np.nan)


def layers_of(network: bytes) -> dict[str, str]:
    """Nodes of the convolutions -> layers as the training names them, for instance ``down.1.0.0``."""
    nodes = onnx.load_model_from_string(network).graph.node
    return {
        node.name: node.input[1].removeprefix("network.").removesuffix(".weight")
        for node in nodes
        if node.op_type == "Conv"
    }


def stage_of(layer: str) -> str:
    """Part of the network that a layer belongs to, for instance ``down.1`` or ``head``."""
    first, *rest = layer.split(".")
    return ".".join([first, *rest[:1]])


def quantised(network: bytes, name: str, frames: Iterable[Image], stages: Collection[str]) -> bytes:
    """A network with the convolutions of some of its parts in int8, and all else as it is.

    Parameters
    ----------
    network
        ONNX in float32.
    name
        Of its input.
    frames
        That the range of every activation is taken from, normalised.
    stages
        Parts as `stage_of` names them.

    Raises
    ------
    ValueError
        The network has no such part.
    """
    # tapetum has imported onnxruntime by now, so that it tells nobody
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    layers = layers_of(network)
    if unknown := set(stages) - set(map(stage_of, layers.values())):
        raise ValueError(f"the network has no convolutions named {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="tapetum-bench-") as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(network)
        quantize_static(
            source,
            target,
            CalibrationFrames(name, frames),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu"],  # one that follows a convolution becomes part of it
            nodes_to_exclude=[node for node, layer in layers.items() if stage_of(layer) not in stages],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return target.read_bytes()


def all_but(network: bytes, kept: Collection[str]) -> list[str]:
    """Parts of a network but those that are kept in float32.

    Raises
    ------
    ValueError
        There is none of a name that is to be kept.
    """
    found = dict.fromkeys(map(stage_of, layers_of(network).values()))
    if unknown := set(kept) - set(found):
        raise ValueError(f"the network has no convolutions named {', '.join(sorted(unknown))}")
    return [stage for stage in found if stage not in kept]


def packaged_recipe() -> MaskRecipe:
    """How the network is made."""
    recipe = load_any_recipe(RECIPE)
    assert isinstance(recipe, MaskRecipe)
    return recipe


def fit_frames(recipe: MaskRecipe, count: int) -> Iterator[Image]:
    """Normalised frames of the fit part, to take the ranges of activations from."""
    assert recipe.simulation is not None
    settings = recipe.simulation.simulated()
    for name in islice(simulated_ids(recipe.simulation.seed, "fit"), count):
        yield normalise(draw(name, None, settings).data).data


class Network:
    """The network of a finder, in any precision."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.finder = load(spec)
        model = self.finder.model
        assert model.card.frame is not None
        self.input = model.card.frame.name
        self.origin = model.origin
        self.onnx = Path(model.origin).read_bytes()

    def with_onnx(self, network: bytes) -> Contaminants:
        """The finder with the same card and another network."""
        return Contaminants(Model(self.finder.model.card, network, f"{self.origin}, quantised"))

    def in_bfloat16(self) -> Contaminants | None:
        """The finder with OpenVINO; None, which is printed, where that computes nothing in bfloat16."""
        if importlib.util.find_spec("openvino") is None:
            print("precision: bfloat16 is skipped: pip install 'tapetum[openvino]'")
            return None
        from tapetum.models._openvino import open_network

        if open_network(self.onnx, self.origin).exact:
            print("precision: bfloat16 is skipped: this processor has no instructions for it")
            return None
        return load(self.spec, Config(runtime="openvino"))


def planes(flagged: Bits) -> NDArray[np.bool_]:
    """Masks of the classes, shape (n_classes, n_y, n_x), of bits."""
    return np.stack([flagged & np.uint16(1 << i) != 0 for i in range(len(NAMES))])


def judge(finders: Mapping[str, Contaminants], frames: Sequence[FrameWithTruth]) -> dict[str, Answer]:
    """Mask all frames in all precisions, in turn; the first is what the others are compared with."""
    counts: dict[str, list[Counts]] = {name: [] for name in finders}
    shared = {name: np.zeros((2, len(NAMES)), np.int64) for name in finders}
    spent = dict.fromkeys(finders, 0.0)
    for finder in finders.values():
        finder.find(frames[0].data)  # compiles
    for frame in frames:
        reference = None
        for name, finder in finders.items():
            start = time.process_time()
            flagged = finder.find(frame.data).flagged
            spent[name] += time.process_time() - start
            counts[name].append(overlap(flagged, frame.truth.classes, frame.truth.unknown))
            mask = planes(flagged)
            reference = mask if reference is None else reference
            shared[name] += [(mask & reference).sum((1, 2)), (mask | reference).sum((1, 2))]
    n_pixels = sum(frame.data.size for frame in frames)
    return {
        name: Answer(np.stack(counts[name]), both, either, 1e6 * spent[name] / n_pixels)
        for name, (both, either) in shared.items()
    }


def correlations(answer: Answer) -> list[Draws]:
    """Matthews correlation of every class, of all frames and of resampled ones."""
    weights = weights_of([str(i) for i in range(len(answer.counts))], N_RESAMPLED, SEED)
    drawn = mcc(np.tensordot(weights, answer.counts.astype(float), 1))
    true = answer.counts[..., TRUE].sum(0)
    return [Draws(drawn[:, i], int(n)) for i, n in enumerate(true)]


def report(answers: Mapping[str, Answer]) -> dict[str, dict[str, tuple[float, float]]]:
    """Print what each precision does to each class; difference of the MCC, and IoU, by precision and class."""
    drawn = {name: correlations(answer) for name, answer in answers.items()}
    result: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in answers if name != REFERENCE}
    for i, kind in enumerate(NAMES):
        mine = drawn[REFERENCE][i]
        masked = answers[REFERENCE].either[i]
        parts = [f"{mine.n} pixels, {REFERENCE} masks {masked}, MCC {mine.values[0]:.3f}"]
        for name in result:
            other = drawn[name][i].minus(mine).figure()
            overlapping = float(answers[name].iou[i])
            result[name][kind] = other.value, overlapping
            parts.append(
                f"{name} {other.value:+.3f} ({other.low:+.3f} to {other.high:+.3f}), IoU {overlapping:.3f}"
            )
        print(f"    {kind:4s} {'; '.join(parts)}", flush=True)
    return result


def stages(network: Network, recipe: MaskRecipe, frames: Sequence[FrameWithTruth]) -> None:
    """Print what int8 does where one part of the network alone has it."""
    calibration = list(fit_frames(recipe, STAGE_CALIBRATION))
    finders = {REFERENCE: network.finder}
    for stage in all_but(network.onnx, ()):
        finders[stage] = network.with_onnx(quantised(network.onnx, network.input, calibration, [stage]))
    print(f"precision: one part of the network in int8, IoU on {len(frames)} frames", flush=True)
    for stage, answer in list(judge(finders, frames).items())[1:]:
        rows = {kind: float(answer.iou[i]) for i, kind in enumerate(NAMES) if answer.either[i] >= ENOUGH}
        worst = min(rows, key=lambda kind: rows[kind])
        mean = np.mean(list(rows.values()))
        print(f"    {stage:10s} mean of classes {mean:.3f}, least {rows[worst]:.3f} of {worst}", flush=True)


def run(
    spec: str = MODEL,
    count: int = 64,
    calibration: int = 16,
    *,
    kept: Sequence[str] = FLOAT,
    by_stage: bool = False,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Measure and print; see `report`."""
    network, recipe = Network(spec), packaged_recipe()
    finders, sizes = {REFERENCE: network.finder}, {REFERENCE: len(network.onnx)}
    if (quick := network.in_bfloat16()) is not None:
        finders["bfloat16"], sizes["bfloat16"] = quick, len(network.onnx)  # OpenVINO is given the same file
    small = quantised(
        network.onnx, network.input, fit_frames(recipe, calibration), all_but(network.onnx, kept)
    )
    finders["int8"], sizes["int8"] = network.with_onnx(small), len(small)
    frames = list(frames_of(recipe, [], 0, count))
    card = network.finder.model.card
    print(
        f"precision: {card.name} {card.version}, {count} simulated frames; int8 calibrated on {calibration}, all"
        f" convolutions but {', '.join(kept) or 'none'}; difference of the MCC to {REFERENCE}, IoU with its mask",
        flush=True,
    )
    answers = judge(finders, frames)
    result = report(answers)
    for name, answer in answers.items():
        print(
            f"precision: {name:8s} {sizes[name] / 1e6:.2f} MB, {answer.seconds:.3f} s per megapixel,"
            f" {answer.seconds / answers[REFERENCE].seconds:.2f} of {REFERENCE}",
            flush=True,
        )
    if by_stage:
        stages(network, recipe, frames[:STAGE_FRAMES])
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=MODEL, metavar="NAME|PATH")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=16, help="frames")
    parser.add_argument("--float", nargs="*", default=FLOAT, dest="kept", metavar="PART", help="not in int8")
    parser.add_argument("--stages", action="store_true", help="each part of the network alone in int8")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the quantiser advises a preparation that this network does not need
    print(machine())
    run(args.model, args.frames, args.calibration, kept=args.kept, by_stage=args.stages)


if __name__ == "__main__":
    main()
