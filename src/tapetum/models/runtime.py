"""Run a model: one thread unless told otherwise, micro-batches, nothing trusted before it was checked."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np

from tapetum.core.errors import ModelError
from tapetum.models._ort import frame_memory, ort, ort_errors
from tapetum.models.calibration import calibrate
from tapetum.models.card import (
    DmdtContract,
    FeatureContract,
    FrameContract,
    PointsContract,
    TableContract,
    load_card,
)
from tapetum.models.golden import check_golden
from tapetum.models.registry import find_model
from tapetum.models.tiles import CORE_INPUT, CORE_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tapetum.models.card import CardBody, InputContract, ModelCard, Output

log = logging.getLogger(__name__)
Runtime = Literal["onnxruntime", "openvino"]
ORT_ERRORS: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ValueError,
)
ERROR_LEVEL = 3  # onnxruntime's log: errors only
BFLOAT16_TOLERANCE = 0.03  # of golden vectors, where a runtime computes with 8 bits of mantissa


class Runner(Protocol):
    """An open network, whatever runs it."""

    @property
    def inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Shapes by name; what is not a number is free."""

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of inputs that may be left out, and are not among `inputs`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names."""

    @property
    def exact(self) -> bool:
        """It computes in float32."""

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """These outputs for a batch.

        The arrays may be overwritten by the next call.

        Raises
        ------
        ValueError
            The arrays do not fit the network, or it cannot be run.
        """


class OrtRunner:
    """A network in onnxruntime."""

    exact = True

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session

    @property
    def inputs(self) -> dict[str, tuple[Any, ...]]:
        """Shapes by name; what is not a number is free."""
        return {port.name: tuple(port.shape) for port in self.session.get_inputs()}

    @property
    def optional(self) -> tuple[str, ...]:
        """Names of inputs that may be left out."""
        return tuple(port.name for port in self.session.get_overridable_initializers())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names."""
        return tuple(port.name for port in self.session.get_outputs())

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
        """These outputs for a batch; see `Runner.run`."""
        try:
            return list(self.session.run(list(outputs), dict(feed)))
        except ORT_ERRORS as problem:
            raise ValueError(str(problem)) from None


def open_session(onnx: bytes, origin: str, *, threads: int = 1, large: bool = False) -> ort.InferenceSession:
    """A session whose threads do not spin.

    Parameters
    ----------
    onnx
        The file's content.
    origin
        For messages.
    threads
        It uses.
    large
        For inputs of millions of pixels: memory that is not needed at once is used again, at no cost.

    Raises
    ------
    ModelError
        Not an ONNX network that onnxruntime can run; names `origin`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = ERROR_LEVEL
    if large:
        frame_memory(options)
    try:
        return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as problem:
        raise ModelError(f"{origin}: not a network that onnxruntime can run: {problem}") from None


def _open(card: CardBody, onnx: bytes, origin: str, threads: int, runtime: Runtime) -> Runner:
    if runtime == "openvino":
        from tapetum.models._openvino import open_network

        return open_network(onnx, origin, threads=threads)
    large = card.frame is not None and card.frame.side is None
    return OrtRunner(open_session(onnx, origin, threads=threads, large=large))


class Model:
    """A network and its card, ready to run.

    Attributes
    ----------
    card : ModelCard
    origin : str
        Where it was found, for messages.
    """

    def __init__(
        self, card: ModelCard, onnx: bytes, origin: str, *, threads: int = 1, runtime: Runtime = "onnxruntime"
    ) -> None:
        self.card = card
        self.origin = origin
        self._runner = _open(card, onnx, origin, threads, runtime)
        self._check_ports()

    @classmethod
    def load(
        cls, spec: str, *, verify: bool = True, threads: int = 1, runtime: Runtime = "onnxruntime"
    ) -> Self:
        """Find, check and open a model.

        Parameters
        ----------
        spec
            Name, ``name@version`` or path, as `tapetum.models.registry.find_model` takes it.
        verify
            Check sha256 and golden vectors; a few milliseconds for a network that takes stamps.
        threads
            The network uses; scale by processes where there are many inputs.
        runtime
            onnxruntime, the reference; or openvino, which computes in bfloat16 where the processor does: then about
            twice as fast, and off by 0.001 on average and 0.05 in one of a thousand answers.

        Raises
        ------
        ModelError
            No such model, an invalid card, a file that is not the one the card describes, inputs or outputs other
            than the card's, or golden vectors that do not come out.
        MissingExtraError
            The runtime is openvino and not installed.
        """
        files = find_model(spec)
        card = load_card(files.card)
        try:
            onnx = files.onnx.read_bytes()
        except OSError as problem:
            raise ModelError(f"{files.onnx}: the network cannot be read: {problem}") from None
        found = hashlib.sha256(onnx).hexdigest()
        if verify and found != card.onnx_sha256:
            raise ModelError(
                f"{files.onnx}: sha256 is {found[:12]}..., the card says {card.onnx_sha256[:12]}...: "
                "the file was changed or damaged; install or import the model again"
            )
        model = cls(card, onnx, str(files.onnx), threads=threads, runtime=runtime)
        if verify and card.golden is not None:
            model.check_golden()
        log.info("%s %s from %s", card.name, card.version, files.onnx.parent)
        return model

    def _check_ports(self) -> None:
        """The network takes and gives what its card says."""
        found = self._runner.inputs
        if set(found) != {entry.name for entry in self.card.inputs}:
            names = ", ".join(entry.name for entry in self.card.inputs)
            raise ModelError(f"{self.origin}: the network takes {', '.join(found)}, its card says {names}")
        for entry in self.card.inputs:
            wanted, shape = _shape(entry), found[entry.name][1:]
            fixed = [(n, want) for n, want in zip(shape, wanted, strict=False) if isinstance(n, int)]
            if any(n != want for n, want in fixed):
                raise ModelError(
                    f"{self.origin}: input {entry.name} has the shape {shape}, its card says {wanted}"
                )
        missing = {output.name for output in self.card.outputs} - set(self._runner.outputs)
        if missing:
            raise ModelError(f"{self.origin}: the network has no output {', '.join(sorted(missing))}")

    def check_golden(self) -> float:
        """Largest difference of the golden vectors; see `tapetum.models.golden.check_golden`."""
        card: CardBody = self.card
        if card.golden is not None and not self._runner.exact:
            loose = max(card.golden.tolerance, BFLOAT16_TOLERANCE)
            card = card.model_copy(update={"golden": card.golden.model_copy(update={"tolerance": loose})})
        return check_golden(card, self._answers)

    def _answers(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.floating[Any]]:
        if self.card.outputs[0].per == "example":
            return self.scores(inputs)
        (frames,) = inputs.values()
        step = self.card.micro_batch
        parts = [self.maps(frames[i : i + step]).copy() for i in range(0, len(frames), step)]
        return np.concatenate(parts)

    def scores(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """Run the network over prepared inputs, in micro-batches.

        Parameters
        ----------
        inputs
            Prepared arrays by name of the ONNX input, all of the same length n.

        Returns
        -------
        ndarray of float64, shape (n, n_columns)
            The card's first output, raw.

        Raises
        ------
        ModelError
            The arrays do not fit the network.
        """
        output = self.card.outputs[0]
        return self._rows(inputs, (output,))[output.name].astype(np.float64)

    def outputs(self, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        """As `scores`, but all outputs of the card by name: float32, shapes (n, n_columns of each)."""
        return self._rows(inputs, self.card.outputs)

    def _rows(
        self, inputs: Mapping[str, NDArray[np.float32]], outputs: Sequence[Output]
    ) -> dict[str, NDArray[np.float32]]:
        n, step = len(next(iter(inputs.values()))), self.card.micro_batch
        rows = [np.empty((n, len(output.columns)), dtype=np.float32) for output in outputs]
        for start in range(0, n, step):
            feed = {name: values[start : start + step] for name, values in inputs.items()}
            shapes = [values[start : start + step].shape for values in rows]
            for values, part in zip(rows, self._run(outputs, feed, shapes), strict=True):
                values[start : start + step] = part
        return {output.name: values for output, values in zip(outputs, rows, strict=True)}

    def maps(
        self, frames: NDArray[np.float32], core: tuple[slice, slice] | None = None
    ) -> NDArray[np.float32]:
        """Run a network that answers for each pixel over prepared frames, all at once.

        Parameters
        ----------
        frames : ndarray of float32, shape (n, 1, n_y, n_x)
            Prepared as the card's frame contract says, with sides that are multiples of what it says.
        core
            Rows and columns, with start and stop, that are asked for; None: all. The answers are the same, but less
            work is done where the network allows it.

        Returns
        -------
        ndarray of float32, shape (n, n_columns, n_y, n_x)
            The card's first output, raw, of the core. Valid until the next call.

        Raises
        ------
        ModelError
            The network answers per example, or the frames do not fit it.
        """
        output, contract = self.card.outputs[0], self.card.frame
        if contract is None or output.per != "pixel":
            raise ModelError(f"{self.origin}: the network has no answer for each pixel")
        n, _, *sides = frames.shape
        feed: dict[str, NDArray[Any]] = {contract.name: frames}
        asked = [slice(0, side) for side in sides]
        if core is not None and CORE_INPUT in self._runner.optional:
            step = CORE_MULTIPLE
            asked = [
                slice(part.start // step * step, min(-(-part.stop // step) * step, side))
                for part, side in zip(core, sides, strict=True)
            ]
            feed[CORE_INPUT] = np.array([*(part.start for part in asked), *(part.stop for part in asked)])
        shape = (n, len(output.columns), *(part.stop - part.start for part in asked))
        maps = self._run((output,), feed, [shape])[0]
        if core is None:
            return maps
        rows, columns = (
            slice(wanted.start - given.start, wanted.stop - given.start)
            for wanted, given in zip(core, asked, strict=True)
        )
        return maps[:, :, rows, columns]

    def _run(
        self,
        outputs: Sequence[Output],
        feed: Mapping[str, NDArray[Any]],
        shapes: Sequence[tuple[int, ...]],
    ) -> list[NDArray[np.float32]]:
        """Outputs for one batch, which must have these shapes."""
        try:
            values = self._runner.run([output.name for output in outputs], feed)
        except ValueError as problem:
            raise ModelError(f"{self.origin}: {problem}") from None
        for output, array, shape in zip(outputs, values, shapes, strict=True):
            if array.shape != shape:
                raise ModelError(
                    f"{self.origin}: output {output.name} has the shape {array.shape}, not {shape}"
                )
        return values

    def probability(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probability of each score; NaN where the score is NaN or the card has no calibration."""
        logits = self.card.outputs[0].activation == "none"
        return calibrate(score, self.card.calibration, scores_are_logits=logits)


def _shape(entry: InputContract) -> tuple[Any, ...]:
    if isinstance(entry, FeatureContract):
        return (len(entry.features),)
    if isinstance(entry, TableContract):
        return (len(entry.included),)
    if isinstance(entry, DmdtContract):
        return entry.planes
    if isinstance(entry, PointsContract):
        return (entry.length, entry.channels)
    if isinstance(entry, FrameContract):
        return (1, entry.side, entry.side)
    plane = (entry.size, entry.size)
    return (entry.n_planes, *plane) if entry.layout == "nchw" else (*plane, entry.n_planes)
