"""The model card: all that a network cannot be run or judged without, one JSON file beside ``model.onnx``."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from tapetum.core.errors import ModelError
from tapetum.core.files import whole_file
from tapetum.models.flags import flag_names

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CARD_VERSION = 1
FLOAT32_MAX = 3.4028234663852886e38
STORED_ARRAY_BYTES = 64 * 2**20  # cap on one array of a card after decompression

Card = TypeVar("Card", bound="CardBody")
StampName = Literal["science", "template", "difference"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]
Version = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Normalisation(_Part):
    """What happens to the pixel values of each stamp, on its own, before the network sees them.

    ``row_l2``: every pixel row divided by its own L2 norm. ``stamp_l2``: the stamp by its L2 norm.
    ``stamp_l2_mean``: the same, then minus its mean. A norm of zero counts as one; a norm whose
    square is beyond float32 turns all into 0, as the float32 code of the original networks does.
    ``background_noise``: minus the median, divided by 1.4826 times the median absolute deviation, both of the
    finite pixels, then ``softened = arcsinh(value / softening)``.
    """

    method: Literal["row_l2", "stamp_l2", "stamp_l2_mean", "background_noise"]
    softening: float = Field(
        default=1.0,
        gt=0,
        description="background_noise: where arcsinh turns from linear to logarithmic [noise]",
    )


class Padding(_Part):
    """What fills the input beyond a stamp that is smaller than it."""

    side: Literal["bottom_right", "centre"] = Field(description="centre: offset ceil((size - n) / 2)")
    value: float = 0.0
    when: Literal["before", "after"] = Field(default="after", description="before or after normalisation")


class ImageContract(_Part):
    """How three stamps become one image input of the network."""

    kind: Literal["image"] = "image"
    name: str = Field(description="name of the ONNX input")
    size: int = Field(ge=1, le=1024, description="side of the input [pixel]")
    channels: tuple[StampName, ...] = Field(
        min_length=1, max_length=3, description="order of the stamp planes"
    )
    masks: Literal["none", "per_stamp", "combined"] = Field(
        default="none",
        description="planes after the stamps, 1 where a pixel has a value, else 0; combined: in all channels",
    )
    layout: Literal["nchw", "nhwc"] = "nchw"
    units: str = Field(default="any linear flux unit", description="unit of the stamps before normalisation")
    missing: Literal["zero"] = Field(
        default="zero",
        description="NaN pixels: 0 before an L2 normalisation; not in the statistics of background_noise, 0 after",
    )
    limit: float = Field(
        default=1e30,
        gt=0,
        le=FLOAT32_MAX,
        description="pixels beyond +-limit (survey pipelines write -3.4e38) count as missing, like infinite ones",
    )
    normalisation: Normalisation
    padding: Padding
    larger: Literal["crop_centre", "reject"] = Field(
        default="reject",
        description="a stamp larger than `size`: cut about its centre before normalisation, or not scored",
    )

    @property
    def n_planes(self) -> int:
        """Planes of the network's input: stamps, then masks."""
        return len(self.channels) + {"none": 0, "per_stamp": len(self.channels), "combined": 1}[self.masks]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.channels)) != len(self.channels):
            raise ValueError("a stamp is named twice in `channels`")
        if self.normalisation.method == "background_noise" and self.padding.when == "before":
            raise ValueError("background_noise pads after normalisation only: padding has no background")
        return self


class FeatureContract(_Part):
    """How fields of the packet's candidate record become one feature input of the network."""

    kind: Literal["features"] = "features"
    name: str = Field(description="name of the ONNX input")
    features: tuple[str, ...] = Field(min_length=1, description="names of the fields, in order")
    fallbacks: dict[str, str] = Field(
        default_factory=dict, description="field to take when a feature is missing"
    )
    scaling: Literal["none"] = "none"
    missing: Literal["reject"] = Field(
        default="reject", description="an alert without one of the features is not scored"
    )


class FrameContract(_Part):
    """How a science frame becomes the input of a network that looks at whole frames, tile by tile.

    The input has the shape (n, 1, n_y, n_x), float32: minus the sky, divided by the noise of the sky, both local,
    as `tapetum.images.normalise` measures them.
    """

    kind: Literal["frame"] = "frame"
    name: str = Field(description="name of the ONNX input")
    normalisation: Literal["sky_sigma"] = Field(
        default="sky_sigma", description="minus the local sky, divided by its standard deviation"
    )
    units: str = Field(default="any linear flux unit", description="unit of the frame before normalisation")
    missing: Literal["zero"] = Field(
        default="zero", description="pixels without a finite value are 0 after normalisation"
    )
    multiple: int = Field(default=1, ge=1, le=1024, description="the sides of a tile are multiples of it")
    side: int | None = Field(
        default=None, ge=8, le=4096, description="the only side of a tile that fits; null: any [pixel]"
    )
    margin: int = Field(
        default=0, ge=0, le=4096, description="how far a pixel's answer can depend on others [pixel]"
    )
    largest: int = Field(
        default=1448,
        ge=8,
        le=65536,
        description="a tile has at most the pixels of a square of this side: memory",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.side is not None and self.side % self.multiple:
            raise ValueError("`side` is not a multiple of `multiple`")
        return self


class StoredArray(_Part):
    """A float32 array inside the card: little-endian bytes, deflated, base64."""

    shape: tuple[int, ...]
    data: str

    @classmethod
    def pack(cls, values: NDArray[Any]) -> Self:
        """Pack `values` as float32."""
        raw = np.ascontiguousarray(values, dtype="<f4").tobytes()
        return cls(shape=tuple(values.shape), data=base64.b64encode(zlib.compress(raw, 9)).decode())

    def unpack(self) -> NDArray[np.float32]:
        """The array.

        Raises
        ------
        ModelError
            The text is not base64 of deflated data of this shape.
        """
        n_bytes = 4 * int(np.prod(self.shape, dtype=np.int64))
        try:
            if n_bytes > STORED_ARRAY_BYTES:
                raise ValueError(f"{n_bytes} bytes is more than the {STORED_ARRAY_BYTES} allowed")
            raw = zlib.decompressobj().decompress(base64.b64decode(self.data, validate=True), n_bytes + 1)
            if len(raw) != n_bytes:
                raise ValueError(f"{len(raw)} bytes where the shape {self.shape} needs {n_bytes}")
        except (ValueError, zlib.error, binascii.Error) as problem:
            raise ModelError(f"an array of the model card cannot be read: {problem}") from None
        return np.frombuffer(raw, dtype="<f4").reshape(self.shape).astype(np.float32)


class TableFeature(_Part):
    """One column of a feature table: its type, and what is frozen of the training part for it."""

    name: str = Field(min_length=1, description="the column, without the name of the period's algorithm")
    include: bool = Field(default=True, description="false: in the list, but the network does not see it")
    dtype: Literal["float32", "float64", "int64"] = Field(
        default="float64",
        description="numbers are this before they are scaled: float32 rounds, int64 refuses fractions",
    )
    periodic: bool = Field(
        default=False, description="the column's name ends in `_` and the period's algorithm"
    )
    missing: Literal["drop", "zero", "median", "mean", "regress", "keep"] = Field(
        default="drop",
        description="what becomes of a missing value; drop: the row is not scored, keep: the network takes NaN",
    )
    median: float | None = Field(default=None, description="of the training part, for median")
    mean: float | None = Field(
        default=None,
        description="of the training part, for mean, and for regress where a row has none of the regressed features",
    )
    centre: float | None = Field(
        default=None, description="minimum or median of the training part; null: not scaled"
    )
    width: float | None = Field(
        default=None, gt=0, description="maximum minus minimum, or standard deviation, of the training part"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.centre is None) != (self.width is None):
            raise ValueError(f"{self.name}: `centre` and `width` belong together")
        needs = {"median": self.median, "mean": self.mean, "regress": self.mean}
        if self.missing in needs and needs[self.missing] is None:
            which = "median" if self.missing == "median" else "mean"
            raise ValueError(
                f"{self.name}: the rule for missing values is {self.missing}, but there is no `{which}`"
            )
        return self


class TableContract(_Part):
    """How a row of a feature table becomes one input of the network, shape (n, n_included), float32.

    Missing values are replaced by what the training part says, never by what else is in the same table; then
    ``(value - centre) / width``, kept within +-`limit`.
    """

    kind: Literal["table"] = "table"
    name: str = Field(description="name of the ONNX input")
    features: tuple[TableFeature, ...] = Field(min_length=1, description="in the order of the input")
    period_suffix: str = Field(
        default="",
        description="algorithm of the period that the periodic features are folded with, such as LS",
    )
    scaling: Literal["none", "min_max", "median_std"] = Field(
        default="none", description="what `centre` and `width` of each feature are"
    )
    limit: float = Field(
        default=FLOAT32_MAX, gt=0, le=FLOAT32_MAX, description="scaled values stay within +-limit"
    )
    donors: StoredArray | None = Field(
        default=None,
        description="rows of the training part, columns the features to regress, NaN where missing: the mean of the "
        "nearest five replaces a missing value",
    )

    @property
    def included(self) -> tuple[TableFeature, ...]:
        """Features that the network sees, in its order."""
        return tuple(feature for feature in self.features if feature.include)

    def column(self, feature: TableFeature) -> str:
        """Name of a feature's column."""
        return f"{feature.name}_{self.period_suffix}" if feature.periodic else feature.name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("a feature is named twice")
        if not self.included:
            raise ValueError("no feature is included")
        if any(feature.periodic for feature in self.included) and not self.period_suffix:
            raise ValueError("periodic features need a `period_suffix`")
        if self.scaling == "none" and any(feature.centre is not None for feature in self.included):
            raise ValueError("features have a `centre`, but `scaling` is none")
        regressed = sum(feature.missing == "regress" for feature in self.included)
        if regressed and (self.donors is None or self.donors.shape[1:] != (regressed,)):
            raise ValueError(f"{regressed} regressed features need `donors` of as many columns")
        return self


class DmdtContract(_Part):
    """How the histogram of pairs of a light curve becomes an image input of the network, float32.

    The table's column is a list of rows of equal length (magnitude differences), or the rows one after the other,
    already divided by its Frobenius norm (`tapetum.lightcurves.dmdt`).
    """

    kind: Literal["dmdt"] = "dmdt"
    name: str = Field(description="name of the ONNX input")
    column: str = Field(default="dmdt", description="of the feature table")
    shape: tuple[int, int] = Field(default=(26, 26), description="magnitude differences, time differences")
    layout: Literal["nchw", "nhwc"] = "nchw"

    @property
    def planes(self) -> tuple[int, int, int]:
        """Shape of the input without the axis of rows."""
        return (1, *self.shape) if self.layout == "nchw" else (*self.shape, 1)


class PointsContract(_Part):
    """How the points of a light curve become one input of the network, shape (n, length, channels), float32.

    See `tapetum.models.points.prepare_points`.
    """

    kind: Literal["points"] = "points"
    name: str = Field(description="name of the ONNX input")
    length: int = Field(ge=1, le=4096, description="points of a curve that the network sees")
    channels: int = Field(ge=1, le=256, description="numbers of a point")


InputContract = Annotated[
    ImageContract | FeatureContract | FrameContract | TableContract | DmdtContract | PointsContract,
    Field(discriminator="kind"),
]


class Output(_Part):
    """One output of the network."""

    name: str = Field(description="name of the ONNX output")
    columns: tuple[str, ...] = Field(min_length=1, description="what each number of a row means")
    activation: Literal["sigmoid", "softmax", "none"] = Field(
        default="sigmoid", description="last operation; none: logits"
    )
    per: Literal["example", "pixel"] = Field(
        default="example", description="pixel: one plane per column, as large as the input"
    )


class ClassSpec(_Part):
    """One class of a network that answers several questions about the same data.

    Scores are at the class's frequency in the training data, and are carried over to the frequency expected in
    the data: ``p' = p / (p + f (1 - p))`` with ``f = t / (1 - t) * (1 - q) / q``, t the training prior, q the prior.
    """

    name: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=32, description="the column of the output"
    )
    title: str
    code: int = Field(default=0, ge=0, lt=2**31, description="bit in a mask of all classes; 0: none")
    training_prior: float = Field(gt=0, lt=1, description="frequency in the training data")
    prior: float = Field(gt=0, lt=1, description="frequency expected where nothing else is said")
    threshold: float = Field(
        ge=0, le=1, description="probability, at `prior`, above which the class is given"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.code & (self.code - 1):
            raise ValueError("a code must be one bit")
        return self


class NoCalibration(_Part):
    """The score is not a probability."""

    method: Literal["none"] = "none"


class TemperatureCalibration(_Part):
    """Probability = sigmoid(logit / temperature)."""

    method: Literal["temperature"] = "temperature"
    temperature: float = Field(gt=0)


class PlattCalibration(_Part):
    """Probability = sigmoid(a * logit + b)."""

    method: Literal["platt"] = "platt"
    a: float
    b: float


class IsotonicCalibration(_Part):
    """Probability = straight lines between the knots (score, probability), constant beyond them."""

    method: Literal["isotonic"] = "isotonic"
    x: tuple[float, ...] = Field(min_length=2)
    y: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _monotonic(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError("x and y have different lengths")
        if any(b <= a for a, b in zip(self.x, self.x[1:], strict=False)):
            raise ValueError("x must increase")
        if any(b < a for a, b in zip(self.y, self.y[1:], strict=False)) or self.y[0] < 0 or self.y[-1] > 1:
            raise ValueError("y must not decrease and stay within 0 and 1")
        return self


Calibration = Annotated[
    NoCalibration | TemperatureCalibration | PlattCalibration | IsotonicCalibration,
    Field(discriminator="method"),
]


class Metric(_Part):
    """A figure of merit with its uncertainty and what it was measured on."""

    value: float
    low: float | None = Field(default=None, description="lower end of the confidence interval")
    high: float | None = None
    confidence: float | None = Field(
        default=None, gt=0, lt=1, description="of the interval, for instance 0.95"
    )
    n: int | None = Field(default=None, ge=0, description="examples it was measured on")
    data: str | None = Field(default=None, description="the set it was measured on")
    note: str | None = None


class ReliabilityBin(_Part):
    """One bar of the reliability diagram."""

    low: float
    high: float
    n: int = Field(ge=0)
    mean_probability: float | None = None
    fraction_positive: float | None = None


class Reliability(_Part):
    """The reliability diagram and its expected calibration error."""

    data: str
    n: int = Field(ge=0)
    ece: float = Field(
        ge=0, le=1, description="sum over bins of n_bin / n * |mean probability - fraction positive|"
    )
    bins: tuple[ReliabilityBin, ...]


class Source(_Part):
    """Where the weights come from."""

    description: str
    url: str | None = None
    citation: str | None = None
    file: str | None = Field(default=None, description="name of the file that was imported")
    sha256: Sha256 | None = Field(default=None, description="of the file that was imported")


class DataSet(_Part):
    """One set of examples."""

    name: str
    n: int | None = Field(default=None, ge=0)
    role: Literal["training", "validation", "test"] = "training"
    description: str = ""
    citation: str | None = None


class Training(_Part):
    """What the network learned from."""

    description: str
    data: tuple[DataSet, ...] = ()
    split: str | None = None
    recipe: dict[str, JsonValue] = Field(default_factory=dict, description="settings of the training run")


class SyntheticStamps(_Part):
    """Stamps made by `tapetum.models.golden.synthetic_stamps` from these numbers, the same everywhere."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(ge=0, le=2**20)
    count: int = Field(ge=1, le=64)
    size: int = Field(ge=8, le=1024)


class StoredStamps(_Part):
    """Raw stamps kept in the card."""

    kind: Literal["stored"] = "stored"
    stamps: StoredArray = Field(description="(n, 3, n_y, n_x), NaN where there is no value")
    shapes: tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], ...]


class SyntheticFrames(_Part):
    """Normalised frames made by `tapetum.models.golden.synthetic_frames` from these numbers, the same everywhere."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(ge=0, le=2**20)
    count: int = Field(ge=1, le=16)
    size: int = Field(ge=32, le=1024)


class SyntheticDmdt(_Part):
    """Histograms made by `tapetum.models.golden.synthetic_dmdt` from these numbers, the same everywhere."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(ge=0, le=2**20)
    count: int = Field(ge=1, le=64)


class SyntheticPoints(_Part):
    """Points made by `tapetum.models.golden.synthetic_points` from these numbers, the same everywhere."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(ge=0, le=2**20)
    count: int = Field(ge=1, le=64)


class Golden(_Part):
    """Raw inputs and the outputs they must give, through preparation and network; checked at every load."""

    stamps: Annotated[SyntheticStamps | StoredStamps, Field(discriminator="kind")] | None = None
    features: tuple[tuple[float, ...], ...] | None = Field(
        default=None, description="one row per vector, in the order of the contract"
    )
    frames: SyntheticFrames | None = None
    table: tuple[tuple[float | None, ...], ...] | None = Field(
        default=None,
        description="one row per vector: the included features of a table as they are in it, null where missing",
    )
    dmdt: SyntheticDmdt | None = None
    points: SyntheticPoints | None = None
    outputs: tuple[tuple[float, ...], ...] = Field(
        min_length=1,
        description="one row per vector: the columns of the first output, their mean over the pixels of a map",
    )
    projections: tuple[tuple[float, ...], ...] | None = Field(
        default=None,
        description="of a map also the sum over its pixels with random weights, over its side: it tells a map that was "
        "moved or turned, whose mean is the same",
    )
    tolerance: float = Field(default=1e-5, gt=0, description="largest absolute difference")


class CardBody(_Part):
    """What a card says about one version of one network, whatever file the network came in."""

    card_version: Literal[1] = 1
    name: Name
    version: Version
    title: str
    finder: str = Field(default="realbogus", description="the finder that runs it")
    algorithm: str = Field(
        default="",
        pattern=r"^[a-z0-9]*$",
        max_length=16,
        description="short name of what it is, such as dnn or xgb: the end of the columns of a classification",
    )
    licence: str
    authors: tuple[str, ...]
    source: Source
    created: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$", description="date of this version of the card")
    inputs: tuple[InputContract, ...] = Field(min_length=1)
    outputs: tuple[Output, ...] = Field(min_length=1)
    micro_batch: int = Field(
        default=16, ge=1, le=4096, description="alerts per run of the network that is fastest on one core"
    )
    flags: dict[int, str] = Field(default_factory=flag_names, description="bit of the column `flags` -> name")
    surveys: tuple[str, ...] = Field(default=(), description="surveys whose alerts it learned from")
    training: Training
    metrics: dict[str, Metric] = Field(default_factory=dict)
    calibration: Calibration = NoCalibration()
    reliability: Reliability | None = None
    thresholds: dict[str, float] = Field(
        default_factory=dict,
        description="working points: name -> probability (score where there is no calibration) that counts as real; "
        "DOMAIN_tpr_X keeps the share X of the real alerts of a domain (packets, simulated) in validation",
    )
    classes: tuple[ClassSpec, ...] = Field(
        default=(), description="in the order of the columns of the first output"
    )
    golden: Golden | None = None
    notes: tuple[str, ...] = ()
    limitations: tuple[str, ...] = ()

    @property
    def images(self) -> ImageContract | None:
        """Contract of the image input, if the network has one."""
        return next((entry for entry in self.inputs if isinstance(entry, ImageContract)), None)

    @property
    def features(self) -> FeatureContract | None:
        """Contract of the feature input, if the network has one."""
        return next((entry for entry in self.inputs if isinstance(entry, FeatureContract)), None)

    @property
    def frame(self) -> FrameContract | None:
        """Contract of the frame input, if the network has one."""
        return next((entry for entry in self.inputs if isinstance(entry, FrameContract)), None)

    @property
    def table(self) -> TableContract | None:
        """Contract of the input that is a row of a feature table, if the network has one."""
        return next((entry for entry in self.inputs if isinstance(entry, TableContract)), None)

    @property
    def dmdt(self) -> DmdtContract | None:
        """Contract of the input that is a histogram of pairs, if the network has one."""
        return next((entry for entry in self.inputs if isinstance(entry, DmdtContract)), None)

    @property
    def points(self) -> PointsContract | None:
        """Contract of the input that is the points of a light curve, if the network has one."""
        return next((entry for entry in self.inputs if isinstance(entry, PointsContract)), None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [entry.kind for entry in self.inputs]
        if len(set(kinds)) != len(kinds):
            raise ValueError("at most one input of each kind")
        if self.frame is not None and len(self.inputs) != 1:
            raise ValueError("a network that takes frames takes nothing else")
        of_curves = {"table", "dmdt", "points"}
        if not set(kinds) <= of_curves and set(kinds) & of_curves:
            raise ValueError(
                "a network that takes rows of a table takes no stamps, fields of packets or frames"
            )
        if self.frame is None and any(output.per == "pixel" for output in self.outputs):
            raise ValueError("only a network that takes frames answers for each pixel")
        _check_classes(self.classes, self.outputs[0].columns)
        if any(bit <= 0 or bit & (bit - 1) or bit >= 2**31 for bit in self.flags):
            raise ValueError("a flag must be one bit of a positive int32")
        if self.golden is not None:
            _check_golden(self.golden, self)
        return self


class ModelCard(CardBody):
    """The card of one version of one network."""

    onnx_sha256: Sha256 = Field(description="of the file model.onnx; the identity of the model")

    @property
    def identity(self) -> str:
        """Hex SHA-256 of what decides scores and probabilities: network, input contract and calibration."""
        parts = self.model_dump_json(include={"onnx_sha256", "inputs", "calibration"})
        return hashlib.sha256(parts.encode()).hexdigest()


class CardTemplate(CardBody):
    """The card of a known foreign network, before its weights were imported."""

    weights_sha256: Sha256 = Field(
        description="of its weights, whatever file they come in: `KerasNet.weights_sha256` of a Keras network, "
        "`tapetum.models.tf_bundle.arrays_sha256` of named arrays"
    )


def _check_classes(classes: tuple[ClassSpec, ...], columns: tuple[str, ...]) -> None:
    if classes and tuple(entry.name for entry in classes) != columns:
        raise ValueError("the classes must be the columns of the first output, in their order")
    codes = [entry.code for entry in classes if entry.code]
    if len(set(codes)) != len(codes):
        raise ValueError("two classes have the same code")


def _check_golden(golden: Golden, body: CardBody) -> None:
    pairs = (
        (golden.stamps, body.images),
        (golden.features, body.features),
        (golden.frames, body.frame),
        (golden.table, body.table),
        (golden.dmdt, body.dmdt),
        (golden.points, body.points),
    )
    if any((given is None) != (contract is None) for given, contract in pairs):
        raise ValueError("golden vectors must have exactly the inputs of the network")
    n_vectors, n_columns = len(golden.outputs), len(body.outputs[0].columns)
    if any(len(row) != n_columns for row in golden.outputs):
        raise ValueError(f"golden outputs must have {n_columns} column(s)")
    if isinstance(golden.stamps, SyntheticStamps) and golden.stamps.count != n_vectors:
        raise ValueError("as many golden stamps as outputs are needed")
    if isinstance(golden.stamps, StoredStamps) and len(golden.stamps.shapes) != n_vectors:
        raise ValueError("as many golden stamps as outputs are needed")
    if golden.features is not None and body.features is not None:
        widths = {len(row) for row in golden.features}
        if len(golden.features) != n_vectors or widths != {len(body.features.features)}:
            raise ValueError("golden features must have one row per output and one number per feature")
    _check_golden_rows(golden, body)
    if golden.projections is not None:
        if body.outputs[0].per != "pixel":
            raise ValueError("only maps have golden projections")
        if [len(row) for row in golden.projections] != [n_columns] * n_vectors:
            raise ValueError("golden projections must have the shape of the golden outputs")
    if golden.frames is not None and body.frame is not None:
        _check_frames(golden.frames, body.frame, n_vectors)


def _check_golden_rows(golden: Golden, body: CardBody) -> None:
    n_vectors = len(golden.outputs)
    if golden.table is not None and body.table is not None:
        widths = {len(row) for row in golden.table}
        if len(golden.table) != n_vectors or widths != {len(body.table.included)}:
            raise ValueError(
                "a golden table must have one row per output and one number per included feature"
            )
    if golden.dmdt is not None and golden.dmdt.count != n_vectors:
        raise ValueError("as many golden histograms as outputs are needed")
    if golden.points is not None and golden.points.count != n_vectors:
        raise ValueError("as many golden curves of points as outputs are needed")


def _check_frames(frames: SyntheticFrames, contract: FrameContract, n_vectors: int) -> None:
    if frames.count != n_vectors:
        raise ValueError("as many golden frames as outputs are needed")
    if frames.size % contract.multiple or contract.side not in (None, frames.size):
        raise ValueError("golden frames must have a size that the network takes")


def parse_card(text: str, origin: str, kind: type[Card]) -> Card:
    """Read a card, or the template of one, from JSON text.

    Raises
    ------
    ModelError
        Not JSON, or not a card of this version; names `origin` and the first wrong key.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key or 'file'}: {first['msg']}"
        raise ModelError(f"{origin}: not a model card of version {CARD_VERSION}: {reason}") from None


def load_card(path: Path) -> ModelCard:
    """Read ``card.json``.

    Raises
    ------
    ModelError
        The file is missing, not text, or not a valid card.
    """
    try:
        return parse_card(path.read_text(encoding="utf-8"), str(path), ModelCard)
    except (OSError, UnicodeDecodeError) as problem:
        raise ModelError(f"{path}: the model card cannot be read: {problem}") from None


def write_card(path: Path, card: ModelCard) -> None:
    """Write ``card.json``, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")


def card_schema() -> str:
    """The JSON Schema of the card, as it is written to ``card.schema.json``."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ModelCard.model_json_schema()}
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
