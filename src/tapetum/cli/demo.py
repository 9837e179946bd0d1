"""`tapetum demo`: the main job on real sample data, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapetum.cli.common import JobsOption, progress_bar, settings_of, warn

if TYPE_CHECKING:
    from tapetum.alerts.batch import AlertKey, Rejection
    from tapetum.core.settings import Settings
    from tapetum.models.card import ModelCard
    from tapetum.pipelines.demo import Exhibit, NightReport, ReportAlert
    from tapetum.store.store import RankedAlert, Store

SAMPLE = "ztf-alerts"
N_SIMULATED = 400
REAL_SOURCE = (
    "Real alerts of the Zwicky Transient Facility, from the sample ztf-alerts. Part of them also trained the network: "
    "the page shows how it works, its model card says how well."
)
SIMULATED_SOURCE = "Alerts simulated on the spot."
SIMULATED_NOTICE = "These alerts are simulated, not observed: {}"


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


def fetch_alerts(folder: Path, seed: int, *, offline: bool) -> tuple[list[Path], str]:
    """Files of alerts, and the reason why they are simulated; empty when they are real."""
    from tapetum.core.errors import NetworkError
    from tapetum.core.samples import fetch_sample

    if not offline:
        try:
            with progress_bar(f"fetching {SAMPLE}") as progress:
                return fetch_sample(SAMPLE, progress), ""
        except NetworkError as problem:
            reason = f"real sample alerts could not be fetched: {problem}"
    else:
        reason = "--offline was given"
    import numpy as np

    from tapetum.simulate.alerts import simulate_alerts, write_alerts

    path = folder / f"simulated-{seed}.avro"
    write_alerts(path, simulate_alerts(N_SIMULATED, np.random.default_rng(seed)))
    return [path], reason


def reliabilities(store: Store, ranked: Sequence[RankedAlert]) -> dict[AlertKey, float]:
    """The survey's own score of each alert that has one, read from the packets."""
    import numpy as np

    from tapetum.alerts.decode import decode_packets
    from tapetum.surveys.profile import load_profile

    packets = store.packets([(alert.survey, alert.alert_id) for alert in ranked])
    found = {}
    for batch, _ in decode_packets(packets, stamps=False)[0]:
        alert = load_profile(batch.survey).alert
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


def run_demo(settings: Settings, folder: Path, *, offline: bool) -> tuple[Path, str]:
    """Fetch, ingest, score, report.

    Returns
    -------
    (Path, str)
        The report page, and what was found in one line.

    Raises
    ------
    TapetumError
        The model cannot be used, a sample is damaged, or the store or the folder cannot be written.
    """
    from tapetum import __version__
    from tapetum.core.settings import write_settings
    from tapetum.models.card import load_card
    from tapetum.models.registry import find_model
    from tapetum.pipelines.demo import build_page, summary
    from tapetum.report.page import write_page
    from tapetum.store.store import open_store

    card = load_card(find_model(settings.alerts.model).card)
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder / "settings.toml", settings, {"verb": "demo", "offline": offline})
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
        toml = (folder / "settings.toml").read_text()
        made = {"provenance": provenance, "settings_toml": toml}
        report = describe_night(store, card, night, why_simulated, **made)
    page = folder / "report.html"
    write_page(page, build_page(report))
    return page, summary(report)


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for store and report.")] = Path(
        "tapetum-demo"
    ),
    offline: Annotated[bool, typer.Option("--offline", help="Use no network: simulate the alerts.")] = False,
    jobs: JobsOption = None,
) -> None:
    """Take real survey alerts all the way: fetch, read, score, store, and write a report page.

    Without a network the alerts are simulated on the spot, and both the command and the page say so.

    Example: tapetum demo -o tapetum-demo
    """
    page, found = run_demo(settings_of(context, jobs=jobs), out, offline=offline)
    typer.echo(found)
    typer.echo(f"report: {page.absolute()}")
