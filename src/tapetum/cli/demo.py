"""`tapetum demo`: the main job on real sample data, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import JobsOption, OverwriteOption, progress_bar, settings_of, warn

if TYPE_CHECKING:
    from tapetum.alerts.batch import AlertKey, Rejection
    from tapetum.core.settings import Settings
    from tapetum.models.card import ModelCard
    from tapetum.pipelines.demo import Exhibit, NightReport, ReportAlert
    from tapetum.pipelines.demo_curves_page import CurvesReport
    from tapetum.pipelines.demo_images_page import ImagesReport
    from tapetum.store.store import RankedAlert, Store

SAMPLE, QUADRANT, STARS = "ztf-alerts", "ztf-quadrant", "macho-curves"
N_SIMULATED = 400
SCENE_SIDE = 1024  # of the simulated images that stand in for the real quadrant [pixel]
REPORT, IMAGES_REPORT, CURVES_REPORT = "report.html", "images.html", "curves.html"
SETTINGS = "settings.toml"
REAL_SOURCE = (
    "Real alerts of the Zwicky Transient Facility, from the sample ztf-alerts. Part of them also trained the network: "
    "the page shows how it works, its model card says how well."
)
SIMULATED_SOURCE = "Alerts simulated on the spot."
SIMULATED_NOTICE = "These alerts are simulated, not observed: {}"
SIMULATED_IMAGES = "Both images of the second part are simulated, not observed: {}"
SIMULATED_CURVES = "The light curves of the third part are simulated, not observed: {}"


@dataclass
class Night:
    """What one run of the demo brought into the store; the store may hold more, of earlier runs.

    Attributes
    ----------
    alerts
        (survey, alert_id) of all that are in the store now, new or known before.
    rejections
        Packets that could not be used.
    n_new, seconds
        Alerts that are new in the store, and the wall time of reading, scoring and storing [s].
    """

    alerts: set[AlertKey] = field(default_factory=set)
    rejections: list[Rejection] = field(default_factory=list)
    n_new: int = 0
    seconds: float = 0.0


def fetch(sample: str, what: str, *, offline: bool) -> tuple[list[Path], str]:
    """Files of a sample, and the reason why there are none; empty when there are."""
    from tapetum.core.errors import NetworkError
    from tapetum.core.samples import fetch_sample

    if offline:
        return [], "--offline was given"
    try:
        with progress_bar(f"fetching {sample}") as progress:
            return fetch_sample(sample, progress), ""
    except NetworkError as problem:
        return [], f"real sample {what} could not be fetched: {problem}"


def fetch_alerts(folder: Path, seed: int, *, offline: bool) -> tuple[list[Path], str]:
    """Files of alerts, and the reason why they are simulated; empty when they are real."""
    paths, reason = fetch(SAMPLE, "alerts", offline=offline)
    if not reason:
        return paths, ""
    import numpy as np

    from tapetum.simulate.alerts import simulate_alerts, write_alerts

    path = folder / f"simulated-{seed}.avro"
    write_alerts(path, simulate_alerts(N_SIMULATED, np.random.default_rng(seed)))
    return [path], reason


def reliabilities(store: Store, ranked: Sequence[RankedAlert]) -> dict[AlertKey, float]:
    """The survey's own score of each alert that has one, read from the packets."""
    import numpy as np

    from tapetum.alerts.decode import decode_packets
    from tapetum.surveys.profile import load_alert_profile

    packets = store.packets([(alert.survey, alert.alert_id) for alert in ranked])
    found = {}
    for batch, _ in decode_packets(packets, stamps=False)[0]:
        alert = load_alert_profile(batch.survey).alert
        if alert.reliability is None:
            continue
        values = batch.feature(alert.reliability.removeprefix(f"{alert.candidate}."))
        for alert_id, value in zip(batch.alert_id.tolist(), values.tolist(), strict=True):
            if np.isfinite(value):
                found[batch.survey, alert_id] = value
    return found


def exhibits(store: Store, alerts: Sequence[ReportAlert]) -> dict[AlertKey, Exhibit]:
    """Stamps and light curves of alerts, by survey and id."""
    from tapetum.alerts.decode import decode_packets
    from tapetum.pipelines.demo import Exhibit

    by_key = {alert.key: alert for alert in alerts}
    shown = {}
    for batch, _ in decode_packets(store.packets(list(by_key)))[0]:
        for row, alert_id in enumerate(batch.alert_id.tolist()):
            alert = by_key[batch.survey, alert_id]
            curve = store.lightcurve(alert.object_id, alert.survey)
            shown[alert.key] = Exhibit(alert, batch.stamps[row], batch.shapes[row], curve)
    return shown


def rank(store: Store, card: ModelCard, night: Night) -> list[ReportAlert]:
    """Every alert of the night with its score, the best first."""
    from dataclasses import asdict

    from tapetum.pipelines.demo import ReportAlert

    everything = store.ranked(card.name, version=card.version)
    ranked = [alert for alert in everything if (alert.survey, alert.alert_id) in night.alerts]
    own = reliabilities(store, ranked)
    alerts = []
    for found in ranked:
        values = {
            key: value
            for key, value in asdict(found).items()
            if key not in ("model", "model_version", "flags")
        }
        raised = tuple(name for bit, name in card.flags.items() if found.flags & bit)
        alerts.append(
            ReportAlert(**values, flags=raised, reliability=own.get((found.survey, found.alert_id)))
        )
    return alerts


def ingest_into(store: Store, paths: Sequence[Path], settings: Settings) -> Night:
    """Store and score the alerts of `paths` as the settings say."""
    from tapetum.store.ingest import ingest

    night = Night()
    with progress_bar("ingesting alerts") as progress:
        done = ingest(
            store,
            paths,
            model=settings.alerts.model,
            jobs=settings.jobs,
            batch=settings.alerts.batch,
            commit_alerts=settings.store.commit_alerts,
            segment_bytes=settings.store.segment_bytes,
            acknowledge=night.alerts.update,
            rejected=night.rejections.append,
            progress=progress,
        )
    night.n_new, night.seconds = done.stored, done.seconds
    return night


def describe_night(
    store: Store, card: ModelCard, night: Night, why_simulated: str, **more: Any
) -> NightReport:
    """Everything that the page shows about the alerts of a night."""
    from tapetum.pipelines.demo import NightReport, choose, threshold_from

    alerts = rank(store, card, night)
    threshold = threshold_from(card.thresholds, "simulated" if why_simulated else "packets")
    return NightReport(
        source=SIMULATED_SOURCE if why_simulated else REAL_SOURCE,
        notice=SIMULATED_NOTICE.format(why_simulated) if why_simulated else "",
        model=card.name,
        version=card.version,
        calibrated=card.calibration.method != "none",
        threshold=threshold,
        alerts=alerts,
        exhibits=exhibits(store, choose(alerts, threshold.level).all),
        rejections=sorted(night.rejections, key=lambda entry: (entry.source, entry.record)),
        n_detections=int(store.info()["detections"]),
        n_new=night.n_new,
        seconds=night.seconds,
        **more,
    )


def alerts_part(settings: Settings, folder: Path, *, offline: bool) -> NightReport:
    """Fetch, ingest and score alerts.

    Raises
    ------
    TapetumError
        The model cannot be used, a sample is damaged, or the store cannot be written.
    """
    from tapetum import __version__
    from tapetum.models.card import load_card
    from tapetum.models.registry import find_model
    from tapetum.store.store import open_store

    card = load_card(find_model(settings.alerts.model).card)
    paths, why_simulated = fetch_alerts(folder, settings.seed, offline=offline)
    if why_simulated:
        warn(SIMULATED_NOTICE.format(why_simulated))
    database = folder / (f"simulated-{settings.seed}.db" if why_simulated else "night.db")
    with open_store(f"sqlite:///{database.absolute()}", create=True) as store:
        night = ingest_into(store, paths, settings)
        provenance = [
            ("made by", f"tapetum {__version__}"),
            ("alerts", ", ".join(path.name for path in paths)),
            ("model", f"{card.name} {card.version}, network sha256 {card.onnx_sha256}"),
            ("store", store.name),
        ]
        toml = (folder / SETTINGS).read_text()
        made = {"provenance": provenance, "settings_toml": toml}
        return describe_night(store, card, night, why_simulated, **made)


def images_part(settings: Settings, folder: Path, *, offline: bool, overwrite: bool) -> ImagesReport:
    """Fetch a quadrant of sky, simulate a second epoch of it, search it, and compare with what was put in.

    Raises
    ------
    TapetumError
        A sample is damaged, the search failed, or the folder cannot be written.
    """
    from tapetum.pipelines.demo_images import quadrant_pair, scene_pair, search_pair

    paths, why_simulated = fetch(QUADRANT, "image", offline=offline)
    place = folder / "images" / (f"simulated-{settings.seed}" if why_simulated else "quadrant")
    with progress_bar("simulating a second epoch"):
        if why_simulated:
            warn(SIMULATED_IMAGES.format(why_simulated))
            pair = scene_pair(SCENE_SIDE, place / "epochs", settings, why_simulated, overwrite=overwrite)
        else:
            pair = quadrant_pair(paths[0], place / "epochs", settings, overwrite=overwrite)
    with progress_bar("searching it") as progress:
        return search_pair(pair, place, settings, progress, overwrite=overwrite)


def curves_part(settings: Settings, folder: Path, *, offline: bool, overwrite: bool) -> CurvesReport:
    """Fetch light curves of real stars, find their periods, and classify them.

    Raises
    ------
    TapetumError
        A sample is damaged, the model cannot be used, or the folder cannot be written.
    """
    from functools import partial

    from tapetum.pipelines.demo_curves import classify_curves, macho_curves, simulated_curves

    paths, why_simulated = fetch(STARS, "light curves", offline=offline)
    place = folder / "curves" / (f"simulated-{settings.seed}" if why_simulated else "macho")
    make = partial(macho_curves, paths)
    if why_simulated:
        warn(SIMULATED_CURVES.format(why_simulated))
        make = partial(simulated_curves, settings.seed)
    with progress_bar("light curves: periods and classes") as progress:
        return classify_curves(
            make, place, settings, progress, why_simulated=why_simulated, overwrite=overwrite
        )


def run_demo(settings: Settings, folder: Path, *, offline: bool, overwrite: bool = False) -> list[str]:
    """Fetch, ingest, score, search, classify, report.

    Returns
    -------
    list of str
        What was found and where the pages are, line by line.

    Raises
    ------
    TapetumError
        As `alerts_part`, `images_part` and `curves_part`; what is finished by then has its page.
    """
    from tapetum.core.settings import write_settings
    from tapetum.pipelines.demo import build_page, summary
    from tapetum.report.page import write_page

    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder / SETTINGS, settings, {"verb": "demo", "offline": offline})
    night = alerts_part(settings, folder, offline=offline)
    page, images_page, curves_page = folder / REPORT, folder / IMAGES_REPORT, folder / CURVES_REPORT
    write_page(page, build_page(night))  # whatever becomes of the other parts
    from tapetum.pipelines import demo_curves_page, demo_images_page

    images = images_part(settings, folder, offline=offline, overwrite=overwrite)
    write_page(images_page, demo_images_page.build_images_page(images, folder, REPORT))
    parts = [demo_images_page.headline(images, IMAGES_REPORT)]
    write_page(page, build_page(night, parts))
    curves = curves_part(settings, folder, offline=offline, overwrite=overwrite)
    write_page(curves_page, demo_curves_page.build_curves_page(curves, REPORT))
    parts.append(demo_curves_page.headline(curves, CURVES_REPORT))
    write_page(page, build_page(night, parts))
    return [
        summary(night),
        demo_images_page.summary(images),
        demo_curves_page.summary(curves),
        f"images: {images_page.absolute()}",
        f"curves: {curves_page.absolute()}",
        f"report: {page.absolute()}",
    ]


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is made.")] = Path(
        "tapetum-demo"
    ),
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network: simulate alerts, images and light curves.")
    ] = False,
    jobs: JobsOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Take real survey data all the way, in three parts, each with a report page; the first leads to the others.

    Alerts: fetch, read, score, store. Images: simulate a second epoch of a real ZTF quadrant with new sources in it,
    align, subtract, search it, and tell which of them were found; mask what contaminates it. Light curves: find the
    periods of real stars of the MACHO survey, fold and classify them. What is finished is not made again.

    Without a network all of it is simulated on the spot, and both the command and the pages say so.

    Example: tapetum demo -o tapetum-demo
    """
    for line in run_demo(settings_of(context, jobs=jobs), out, offline=offline, overwrite=overwrite):
        typer.echo(line)
