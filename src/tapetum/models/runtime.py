"""Run a model with onnxruntime: one thread, micro-batches, nothing trusted before it was checked."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tapetum.core.errors import ModelError
from tapetum.models._ort import ort, ort_errors
from tapetum.models.calibration import calibrate
from tapetum.models.card import FeatureContract, load_card
from tapetum.models.golden import check_golden
from tapetum.models.registry import find_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tapetum.models.card import ImageContract, ModelCard

log = logging.getLogger(__name__)
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


def open_session(onnx: bytes, origin: str) -> ort.InferenceSession:
    """A session with one thread that does not spin.

    Raises
    ------
    ModelError
        Not an ONNX network that onnxruntime can run; names `origin`.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = ERROR_LEVEL
    try:
        return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as problem:
        raise ModelError(f"{origin}: not a network that onnxruntime can run: {problem}") from None


class Model:
    """A network and its card, ready to run.

    Attributes
    ----------
    card : ModelCard
    origin : str
        Where it was found, for messages.
    """

    def __init__(self, card: ModelCard, onnx: bytes, origin: str) -> None:
        self.card = card
        self.origin = origin
        self._session = open_session(onnx, origin)
        self._check_ports()

    @classmethod
    def load(cls, spec: str, *, verify: bool = True) -> Self:
        """Find, check and open a model.

        Parameters
        ----------
        spec
            Name, ``name@version`` or path, as `tapetum.models.registry.find_model` takes it.
        verify
            Check sha256 and golden vectors; a few milliseconds.

        Raises
        ------
        ModelError
            No such model, an invalid card, a file that is not the one the card describes, inputs or outputs other
            than the card's, or golden vectors that do not come out.
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
        model = cls(card, onnx, str(files.onnx))
        if verify and card.golden is not None:
            model.check_golden()
        log.info("%s %s from %s", card.name, card.version, files.onnx.parent)
        return model

    def _check_ports(self) -> None:
        """The network takes and gives what its card says."""
        found = {port.name: port.shape for port in self._session.get_inputs()}
        if set(found) != {entry.name for entry in self.card.inputs}:
            names = ", ".join(entry.name for entry in self.card.inputs)
            raise ModelError(f"{self.origin}: the network takes {', '.join(found)}, its card says {names}")
        for entry in self.card.inputs:
            wanted, shape = _shape(entry), found[entry.name][1:]
            if any(isinstance(n, int) and n != want for n, want in zip(shape, wanted, strict=False)):
                raise ModelError(
                    f"{self.origin}: input {entry.name} has the shape {shape}, its card says {wanted}"
                )
        outputs = {port.name for port in self._session.get_outputs()}
        missing = {output.name for output in self.card.outputs} - outputs
        if missing:
            raise ModelError(f"{self.origin}: the network has no output {', '.join(sorted(missing))}")

    def check_golden(self) -> float:
        """Largest difference of the golden vectors; see `tapetum.models.golden.check_golden`."""
        return check_golden(self.card, self.scores)

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
        n = len(next(iter(inputs.values())))
        scores = np.empty((n, len(output.columns)), dtype=np.float64)
        step = self.card.micro_batch
        for start in range(0, n, step):
            feed = {name: values[start : start + step] for name, values in inputs.items()}
            try:
                (part,) = self._session.run([output.name], feed)
            except ORT_ERRORS as problem:
                raise ModelError(f"{self.origin}: {problem}") from None
            if part.shape != (min(step, n - start), scores.shape[1]):
                raise ModelError(f"{self.origin}: output {output.name} has the shape {part.shape}")
            scores[start : start + step] = part
        return scores

    def probability(self, score: NDArray[np.float64]) -> NDArray[np.float64]:
        """Calibrated probability of each score; NaN where the score is NaN or the card has no calibration."""
        logits = self.card.outputs[0].activation == "none"
        return calibrate(score, self.card.calibration, scores_are_logits=logits)


def _shape(entry: ImageContract | FeatureContract) -> tuple[Any, ...]:
    if isinstance(entry, FeatureContract):
        return (len(entry.features),)
    plane = (entry.size, entry.size)
    return (entry.n_planes, *plane) if entry.layout == "nchw" else (*plane, entry.n_planes)
