"""The page for people who come from SCoPe is complete, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from tapetum.finders.taxonomy import load_taxonomy
from tapetum.lightcurves.features import features_of
from tapetum.lightcurves.periods.periodograms import Algorithm
from tapetum.pipelines.lightcurve_catalogues import DESCRIBED as OF_CATALOGUES

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "how-to" / "coming-from-scope.md").read_text()
DESCRIBED = {
    "Commands": """scope-initialize get-quad-ids get-features check-quads-for-sources generate-features
        generate-features-slurm generate-features-job-submission scope-train create-training-script
        assemble-training-stats train-algorithm-slurm train-algorithm-job-submission run-inference
        scope-inference create-inference-script get_all_preds.sh run-inference-slurm
        run-inference-job-submission combine-preds combine-preds-slurm run-scope-local analyze-logs
        select-fritz-sample scope-download-classification scope-upload-classification
        scope-download-gcn-sources scope-manage-annotation scope_upload_disagreements.py post-taxonomy
        gcn_cronjob.py""",
    "get-quad-ids": """--catalog --output --output-dir --field --ccd --quad --ccd-range --quad-range
        --minobs --skip --limit --verbose --multi-quads --whole-field""",
    "get-features": """--field --ccd-range --quad-range --limit-per-query --max-sources
        --features-catalog --whole-field --start --end --restart --no-write-results --write-csv
        --column-list --suffix --impute-missing-features --no-self-impute --tm --verbose""",
    "check-quads-for-sources": "--fields --catalog --count-sources --minobs --save --filename",
    "generate-features": """--source-catalog --alerts-catalog --gaia-catalog
        --bright-star-query-radius-arcsec --xmatch-radius-arcsec --query-size-limit --limit
        --period-algorithms --period-batch-size --doCPU --doGPU --samples-per-peak --doScaleMinPeriod
        --doRemoveTerrestrial --Ncore --field --ccd --quad --min-n-lc-points --min-cadence-minutes
        --dirname --filename --doCesium --doNotSave --stop-early --doQuadrantFile --quadrant-file
        --quadrant-index --doSpecificIDs --skipCloseSources --top-n-periods --max-freq --fg-dataset
        --max-timestamp-hjd""",
    "Period algorithms": "LS CE AOV AOV_cython ELS ECE EAOV ELS_ECE_EAOV LS_CE_AOV Ones",
    "Cluster: features": """--job-name --cluster-name --partition-type --submit-partition-type --nodes
        --gpus --memory-GB --submit-memory-GB --time --mail-user --account-name --python-env-name
        --generateQuadrantFile --field-list --max-instances --wait-time-minutes --doSubmitLoop
        --runParallel --user --submit-interval-minutes""",
    "Cluster: submission": """--dirname --filename --filetype --scriptname --generateTrainingFile
        --doSubmit --reset-running --max-instances --submit-interval-seconds --sweep --group-name
        slurm.sub slurm_submission.sub slurm.dat .running""",
    "analyze-logs": "--logs-path --logs-name-pattern --logs-suffix --output-prefix --plot-name --start-date",
    "scope-train": """--tag --path-dataset --algorithm --gpu --verbose --job-type --group --run-sweeps
        --period-suffix --threshold --balance --weight-per-class --scale-features --test-size --val-size
        --random-state --feature-stats --batch-size --shuffle-buffer-size --epochs --float-convert-types
        --lr --beta-1 --beta-2 --epsilon --decay --amsgrad --momentum --monitor --patience --callbacks
        --conv-branch --run-eagerly --pre-trained-model --save --plot --plot-model --weights-only
        --skip-cv""",
    "create-training-script": """--filename --algorithm --min-count --path-dataset
        --pre-trained-group-name --add-keywords --train-all --period-suffix""",
    "assemble-training-stats": "--group-name --algorithm --set-name --importance-directory --stats-directory",
    "Models": """.h5 .json .params models_dnn/<group>/<tag>/ models_xgb/<group>/<tag>/
        <tag>_plots/val/cm.pdf <tag>_plots/val/recall.pdf <tag>_plots/val/roc.pdf
        <tag>_plots/val/stats.json <tag>_plots/val/impvars.pdf <tag>_plots/val/impvars.json wandb""",
    "run-inference": """--paths-models --model-class-names --field --ccd --quad --whole-field --flag-ids
        --xgb-model --verbose --time-run --write-csv --float-convert-types --feature-stats
        --scale-features --trainingSet --feature-directory --feature-file-prefix --period-suffix
        --no-write-metadata --batch-size""",
    "create-inference-script": """--filename --group-name --algorithm --scale-features
        --feature-directory --write-csv --batch-size --use-custom-python --path-to-python
        --period-suffix""",
    "combine-preds": """--path-to-preds --combined-preds-dirname --specific-field --use-config-fields
        --dateobs --merge-dnn-xgb --dnn-directory --xgb-directory --doNotSave --write-csv --agg-method
        --p-threshold""",
    "run-scope-local": """--path-dataset --cone-radius-arcsec --save-sources-filepath --algorithms
        --group-names --doCPU --doRemoveTerrestrial --scale_features --write_csv local_scope_radec.csv
        local_scope_ztfid.csv current_dt""",
    "Files of features": """gen_features_field_<F>_ccd_<C>_quad_<Q>.parquet meta.json
        gen_features_specific_ids.parquet _id obj_id filter field ccd quad dmdt scope_code_version
        start/end catalogues .csv .h5 .parquet""",
    "Files of classes": """preds_<alg>/field_<F>/field_<F>.parquet <tag>_<alg> Gaia_EDR3___id
        AllWISE___id PS1_DR1___id period <field>_flagged.json fields.json meta.json
        inference_scope_code_version inference_dateTime_utc consolidation""",
    "Settings": """config.yaml --config-path --check-configs kowalski fritz wandb taxonomy
        docs.field_guide features.info.period_suffix features.phenomenological features.ontological
        feature_stats dmdt_ints cesium_features external_catalog_features period_algorithms ids_skipGaia
        path_to_features fields_to_run fields_to_exclude training.dataset training.dnn training.xgboost
        training.classes golden_dataset_mapper.json DNN_AL_mapper.json""",
    "Fritz": """select-fritz-sample scope-download-classification scope-upload-classification
        scope-download-gcn-sources scope-manage-annotation post-taxonomy""",
    "Features": """ad chi2red f1_BIC f1_a f1_amp f1_b f1_phi0 f1_power f1_relamp1 f1_relamp2 f1_relamp3
        f1_relamp4 f1_relphi1 f1_relphi2 f1_relphi3 f1_relphi4 i60r i70r i80r i90r inv_vonneumannratio
        iqr median median_abs_dev norm_excess_var norm_peak_to_peak_amp roms skew smallkurt stetson_j
        stetson_k sw welch_i wmean wstd n dmdt period significance n_ztf_alerts mean_ztf_alert_braai
        AllWISE__w1mpro AllWISE__w1sigmpro AllWISE__w2mpro AllWISE__w2sigmpro AllWISE__w3mpro
        AllWISE__w4mpro Gaia_EDR3__parallax Gaia_EDR3__parallax_error Gaia_EDR3__phot_bp_mean_mag
        Gaia_EDR3__phot_bp_rp_excess_factor Gaia_EDR3__phot_g_mean_mag Gaia_EDR3__phot_rp_mean_mag
        PS1_DR1__gMeanPSFMag PS1_DR1__gMeanPSFMagErr PS1_DR1__rMeanPSFMag PS1_DR1__rMeanPSFMagErr
        PS1_DR1__iMeanPSFMag PS1_DR1__iMeanPSFMagErr PS1_DR1__zMeanPSFMag PS1_DR1__zMeanPSFMagErr
        PS1_DR1__yMeanPSFMag PS1_DR1__yMeanPSFMagErr""",
    "Classes": """vnv pnp sin el saw mp longt e ea eb ew wp hp dp i fla dip bogus ext blend bright
        artfct nonvar agn bis blher blyr cbin ceph ceph2 cv dscu emsms f o hwvir nnser rdbkp lpv mir srv
        osarg puls rrlyr rrab rrc rrd rrblz rscvn rvtau wuma wvir yso""",
}
FRITZ_OPTIONS = {
    "select-fritz-sample": """--fields --group --min-class-examples --select-top-n
        --include-all-highprob-labels --probability-threshold --al-directory --al-filename --algorithm
        --exclude-training-sources --write-csv --verbose --consolidation-statistic
        --read-consolidation-results --write-consolidation-results --consol-filename --doNotSave
        --doAllSources""",
    "scope-download-classification": """--file --group-ids --start --merge-features --features-catalog
        --features-limit --taxonomy-map --output-dir --output-filename --output-format --get-ztf-filters
        --impute-missing-features --update-training-set --updated-training-set-prefix --min-vote-diff""",
    "scope-upload-classification": """--file --group-ids --classification --taxonomy-map --comment
        --start --stop --classification-origin --skip-phot --post-survey-id --survey-id-origin
        --p-threshold --match-ids --use-existing-obj-id --post-upvote --check-labelled-box
        --write-obj-id --result-dir --result-filetag --result-format --replace-classifications
        --radius-arcsec --no-ml --post-phot-as-comment --post-phasefolded-phot --phot-dirname
        --instrument-name""",
    "scope-download-gcn-sources": "--dateobs --group-ids --days-range --radius-arcsec --save-filename",
    "scope-manage-annotation": "--action --source --group-ids --origin --key --value",
    "post-taxonomy": "--taxonomy --group-ids --name --version --provenance",
}


def sections() -> dict[str, list[tuple[str, str, str]]]:
    """Rows (theirs, here, remark) of the page by heading."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| `"):
            _, theirs, here, remark, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line))
            found.setdefault(heading, []).append((theirs.strip("`"), here, remark))
    return found


SECTIONS = sections()
ROWS = [(section, *row) for section, rows in SECTIONS.items() for row in rows]


@pytest.mark.parametrize("section", DESCRIBED)
def test_everything_described_has_its_row(section: str) -> None:
    assert set(DESCRIBED[section].split()) - {theirs for theirs, _, _ in SECTIONS[section]} == set()


def test_options_of_planned_commands_are_not_forgotten() -> None:
    rows = {theirs: remark for theirs, _, remark in SECTIONS["Fritz"]}
    assert set(rows) == set(FRITZ_OPTIONS)
    for command, options in FRITZ_OPTIONS.items():
        assert set(re.findall(r"--[\w-]+", rows[command])) == set(options.split()), command


def test_every_row_says_something_once() -> None:
    assert len(ROWS) > 440
    assert set(SECTIONS) == set(DESCRIBED)
    for section, rows in SECTIONS.items():
        names = [theirs for theirs, _, _ in rows]
        assert len(names) == len(set(names)), section
    for section, theirs, here, _ in ROWS:
        assert here == "none" or "`" in here, (section, theirs)


def described_text(real_data: Path) -> str:
    texts = [path.read_text() for path in (real_data.parent / "seeds").glob("003*.txt")]
    if not texts:
        pytest.skip("the description of SCoPe is not beside the shared data")
    [text] = texts
    return text


def test_all_that_the_original_says_of_itself_is_described(real_data: Path) -> None:
    text = described_text(real_data)
    # examples write --option, lists of inputs –option : what it is; underscores and one dash are its typing errors
    options = set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]+)", text)) | set(
        re.findall(r"–([A-Za-z][\w-]+)\*? ?:", text)
    )
    assert len(options) > 110
    ours = " ".join([*DESCRIBED.values(), *FRITZ_OPTIONS.values()])
    known = {name.replace("_", "-") for name in re.findall(r"--([A-Za-z][\w-]+)", ours)}
    not_theirs = {"help"}
    assert {name.replace("_", "-") for name in options} - known - not_theirs == set()


def test_all_commands_and_features_of_the_original_are_described(real_data: Path) -> None:
    text = described_text(real_data)
    commands = set(re.findall(r"^(?:\./)?([a-z][\w.-]+) (?:-{1,2}[a-zA-Z]|<)", text, re.MULTILINE)) - {
        "inputs"
    }
    assert {"get-quad-ids", "generate-features", "run-scope-local", "scope-upload-classification"} <= commands
    assert commands - set(DESCRIBED["Commands"].split()) <= {"crontab", "for", "output", "shell", "env"}
    definitions = text[text.index("Feature definitions") : text.index("Running automated analyses")]
    features = set(re.findall(r"^([\w]+) \|$", definitions, re.MULTILINE)) - {"name", "definition"}
    assert len(features) > 55
    known = set(DESCRIBED["Features"].split())
    assert {
        name for name in features if name not in known and name.replace("AllWISE_", "AllWISE__") not in known
    } == set()


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words lead to, and the options that follow; None when there is no such command."""
    import typer

    from tapetum.cli.app import app

    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while rest and not rest[0].startswith("-"):
        command = getattr(command, "commands", {}).get(rest[0])
        if command is None:
            return None, rest
        rest = rest[1:]
    return command, rest


def options_of(command: Any) -> set[str]:
    return {name for entry in command.params for name in (*entry.opts, *entry.secondary_opts)} | {"--help"}


@pytest.mark.parametrize("text", sorted(set(re.findall(r"`(tapetum [^`]+)`", PAGE))))
def test_commands_and_options_named_here_exist_unless_planned(text: str) -> None:
    command, options = command_of(text.split())
    planned = f"planned: `{text}`" in PAGE
    assert (command is None) == planned, f"{text}: {'exists now, say so' if planned else 'does not exist'}"
    if command is not None:
        assert set(options) - options_of(command) == set()


def test_commands_of_the_example_are_ones() -> None:
    block = re.search(r"```\n(tapetum .*?)```", PAGE, re.DOTALL)
    assert block
    lines = block[1].strip().splitlines()
    assert len(lines) == 5
    for line in lines:
        words = line.split()
        command, rest = command_of([*words[:3], *(word for word in words if re.match(r"--?[a-z]", word))])
        assert command is not None, line
        assert set(rest) <= options_of(command), line


def names_here(*among: str) -> list[tuple[str, str]]:
    """(section, name) of all that is named here and is no command."""
    return [
        (section, name)
        for section, _, here, _ in ROWS
        if (not among or section in among) and not here.startswith("planned")
        for name in re.findall(r"`([^`]+)`", here)
        if not name.startswith("tapetum ")
    ]


def test_features_named_here_are_made() -> None:
    ours = {feature.name for feature in features_of(["scope"])}
    ours |= {f"{catalogue}__{column}" for catalogue, columns in OF_CATALOGUES.items() for column in columns}
    ours |= {"period_LS", "significance_LS", "n_ztf_alerts", "mean_ztf_alert_braai"}
    assert {name for _, name in names_here("Features")} <= ours
    missing = {f.name for f in features_of(["scope"])} - {theirs for theirs, _, _ in SECTIONS["Features"]}
    assert missing == set()


def test_classes_named_here_are_the_taxonomy() -> None:
    codes = set(load_taxonomy("scope").by_code) - {"tds", "phenomenological", "ontological"}
    rows = [(theirs, here.strip("`"), remark) for theirs, here, remark in SECTIONS["Classes"]]
    assert {here for _, here, _ in rows} == codes
    for theirs, here, remark in rows:
        assert theirs == here
        assert load_taxonomy("scope").of(here).label == remark


def test_algorithms_named_here_are_ones() -> None:
    known = {*get_args(Algorithm), "Ones"}
    for _, name in names_here("Period algorithms"):
        assert set(name.split("_")) <= known


def test_files_and_columns_named_here_are_in_the_code() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    special = {"Features", "Classes", "Period algorithms"}
    named = [(section, name) for section, name in names_here() if section not in special]
    assert len(named) > 30
    for section, name in named:
        for piece in name.split("/"):
            word = piece if piece != "rrab_dnn" else "dnn"  # a class and an algorithm
            assert word.removesuffix(".svg") in code, f"{section}: {name}"
