"""The finder of contaminants: scores become classes by prior and threshold, and missing pixels have none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapetum.core.errors import InputError, ModelError, UsageError
from tapetum.finders import contaminants
from tapetum.finders.contaminants import (
    BACKGROUND_BIT,
    MODEL,
    Config,
    Contaminants,
    at_prior,
    check_original,
    class_rules,
    load,
    prior_odds,
    raw_cut,
)
from tapetum.images.contaminants import NAMES, TITLES, Contaminant, code_of
from tapetum.models.card import ClassSpec, FrameContract

TRAINING = (.010, .009, .036, .001, .001, .010, .103, .126, .171, .002, .044, .118, .126, .395)  # fmt: skip
PRIORS = (5e-4, 1e-5, 1e-4, 1e-6, 1e-6, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 5e-3, 5e-3, .1, .9)  # fmt: skip
THRESHOLDS = (.43, .60, .74, .43, .99, .65, .28, .76, .56, .81, .54, .55, .44, .27)  # fmt: skip
CLASSES = tuple(
    ClassSpec(name=name, title=TITLES[name], code=code_of(name), training_prior=t, prior=q, threshold=cut)
    for name, t, q, cut in zip(NAMES, TRAINING, PRIORS, THRESHOLDS, strict=True)
)
shares = st.floats(1e-6, 1 - 1e-6)


def fake(columns, classes=CLASSES, imported=False, **contract):
    """A model whose scores are functions of the normalised pixel, by class; 0.001 else."""

    def maps(images, core):
        scores = np.full((len(images), len(classes), *images.shape[2:]), 0.001, np.float32)
        for number, spec in enumerate(classes):
            if spec.name in columns:
                scores[:, number] = columns[spec.name](images[:, 0])
        return scores[:, :, *core]

    frame = FrameContract(name="x", **{"multiple": 32, "margin": 0, **contract})
    card = SimpleNamespace(
        name="fake", classes=classes, frame=frame, outputs=[SimpleNamespace(columns=NAMES)],
        source=SimpleNamespace(sha256="0" * 64 if imported else None),
    )  # fmt: skip
    return SimpleNamespace(card=card, maps=maps)


def bright(above):
    return lambda x: np.where(x > above, 1.0, 0.001)


@pytest.fixture
def image(rng):
    image = rng.normal(500, 10, (90, 130)).astype(np.float32)
    image[20, 30:40] += 400  # 40 sigma
    image[50, 60] += 4000
    return image


@given(shares, shares, shares, shares)
def test_prior_and_threshold_are_one_comparison(training, prior, threshold, score):
    odds = prior_odds(training, prior)
    probability = score / (score + odds * (1 - score))
    if abs(probability - threshold) > 1e-9:
        assert (score > raw_cut(threshold, odds)) == (probability > threshold)


def test_prior_change_is_that_of_the_described_tool():
    score = np.array([0, 0.3, 0.9, 1], np.float32)
    odds = prior_odds(0.01, 5e-4)
    assert odds == pytest.approx(0.01 / 0.99 * 0.9995 / 5e-4)
    np.testing.assert_allclose(
        at_prior(score, odds), [0, 0.3 / (0.3 + odds * 0.7), 0.9 / (0.9 + odds * 0.1), 1], rtol=1e-6
    )
    np.testing.assert_array_equal(at_prior(score, 1.0), score)
    np.testing.assert_array_equal(at_prior(score, prior_odds(0.01, 0.0)), np.zeros(4))
    np.testing.assert_array_equal(at_prior(score, prior_odds(0.01, 1.0)), [0, 1, 1, 1])


@pytest.mark.parametrize("prior", [1e-37, 1e-39, 1e-45, 1e-300, 5e-324])
def test_tiny_priors_leave_nothing(prior):
    score = np.array([0, 0.3, 0.999], np.float32)
    np.testing.assert_allclose(at_prior(score, prior_odds(0.01, prior)), 0, atol=1e-30)
    assert raw_cut(0.5, prior_odds(0.01, prior)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("prior", "threshold", "cut"),
    [(0.0, 0.5, 1.0), (1.0, 0.5, 0.0), (0.1, 0.0, 0.0), (0.1, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 1.0)],
)
def test_ends_of_priors_and_thresholds(prior, threshold, cut):
    assert raw_cut(threshold, prior_odds(0.01, prior)) == cut


def test_classes_become_planes_and_one_mask(image):
    finder = Contaminants(fake({"CR": bright(100), "TRL": bright(20), "BG": lambda x: 1 - bright(20)(x)}))
    found = finder.find(image)
    assert [rule.name for rule in finder.rules] == list(NAMES)
    codes = found.codes
    assert codes.dtype == np.uint16
    assert codes[50, 60] == Contaminant.CR | Contaminant.TRL
    assert set(codes[20, 30:40].tolist()) == {int(Contaminant.TRL)}
    assert found.counts == {**dict.fromkeys(NAMES, 0), "CR": 1, "TRL": 11, "BG": image.size - 11}
    planes = dict(zip(NAMES, found.planes(), strict=True))
    assert {plane.dtype for plane in planes.values()} == {np.dtype(np.uint8)}
    assert {name: int(plane.sum()) for name, plane in planes.items()} == found.counts
    assert (sum(planes[c.name].astype(int) * c for c in Contaminant) == codes).all()
    assert int((found.flagged & BACKGROUND_BIT > 0).sum()) == found.counts["BG"]
    assert found.probabilities is None
    assert found.n_missing == 0


def test_only_classes_that_are_wanted(image):
    config = Config(classes=("TRL", "CR"), thresholds={"TRL": 1.0})
    found = Contaminants(fake({"CR": bright(20), "TRL": bright(20), "HP": bright(20)}), config).find(image)
    assert found.counts == {"CR": 11, "TRL": 0}  # in the network's order
    assert set(np.unique(found.codes)) == {0, 1}


def test_probabilities_are_at_the_priors(image):
    model = fake({"CR": lambda x: np.full_like(x, 0.9)})
    asked = Contaminants(model, Config(priors={"CR": 0.25})).find(image, probabilities=True)
    raw = Contaminants(model, Config(prior_change=False)).find(image, probabilities=True)
    odds = prior_odds(0.01, 0.25)
    assert asked.probabilities.dtype == np.float32
    assert asked.probabilities.shape == (14, *image.shape)
    np.testing.assert_allclose(asked.probabilities[0], 0.9 / (0.9 + odds * 0.1), rtol=1e-6)
    np.testing.assert_allclose(raw.probabilities[0], 0.9, rtol=1e-6)
    assert raw.rules[0].prior is None
    assert asked.rules[0].prior == 0.25
    flagged = (asked.probabilities > np.array(THRESHOLDS)[:, None, None]).sum(axis=(1, 2))
    assert dict(zip(NAMES, flagged.tolist(), strict=True)) == asked.counts


def test_pixels_without_a_value_have_no_class(image):
    image[20, 32] = np.nan
    bad = np.zeros(image.shape, bool)
    bad[:, :5] = True
    always = {name: lambda x: np.ones_like(x) for name in NAMES}
    found = Contaminants(fake(always)).find(image, bad, probabilities=True)
    gone = bad.copy()
    gone[20, 32] = True
    np.testing.assert_array_equal(found.missing, gone)
    np.testing.assert_array_equal(found.flagged == 0, gone)
    np.testing.assert_array_equal(np.isnan(found.probabilities[3]), gone)
    assert found.n_missing == gone.sum()


@pytest.mark.parametrize("normalisation", ["tapetum", "original"])
@pytest.mark.parametrize("tiling", ["overlapping", "original"])
@pytest.mark.parametrize("shape", [(33, 40), (417, 600)])
def test_both_tilings_and_normalisations_see_every_pixel(rng, tiling, normalisation, shape):
    image = rng.normal(500, 10, shape).astype(np.float32)
    places = rng.permutation(image.size)[:50]
    image.ravel()[places] = 5000
    model = fake({"CR": bright(100)})
    found = Contaminants(model, Config(tiling=tiling, normalisation=normalisation)).find(image)
    np.testing.assert_array_equal(np.flatnonzero(found.codes), np.sort(places))


def test_the_known_saturation_level_needs_no_network(image):
    image[70:73, 100:104] = 2000
    image[0, 0] = np.nan
    full = image >= 2000
    assert full.sum() == 13
    model = fake({"BG": lambda x: np.full_like(x, 0.999), "SAT": bright(1e9)})
    found = Contaminants(model).find(image, probabilities=True, saturation=2000.0)
    np.testing.assert_array_equal(found.codes == Contaminant.SAT, full)
    background = found.flagged & BACKGROUND_BIT != 0
    np.testing.assert_array_equal(background, ~full & ~found.missing)
    sat, bg = NAMES.index("SAT"), NAMES.index("BG")
    assert (found.probabilities[sat][full] == 1).all()
    assert (found.probabilities[sat][~full & ~found.missing] < 0.5).all()
    assert (found.probabilities[bg][full] == 0).all()
    assert not Contaminants(model).find(image).codes.any()  # not known
    assert not Contaminants(model, Config(classes=("CR", "TRL"))).find(image, saturation=2000.0).codes.any()
    # an imported network has the last word
    theirs = fake({"SAT": bright(1e9)}, imported=True)
    assert not Contaminants(theirs).find(image, saturation=2000.0).codes.any()


@pytest.mark.parametrize("name", ["tiling", "normalisation"])
def test_what_is_made_for_an_imported_network_is_for_no_other(name):
    config = Config(**{name: "original"})
    check_original(fake({}, imported=True).card, config)
    check_original(fake({}).card, Config())
    with pytest.raises(
        UsageError, match=f"--{name} original: is that of maximask, and fake was not made for it"
    ):
        check_original(fake({}).card, config)


def test_what_cannot_be_judged_is_said(image):
    finder = Contaminants(fake({}))
    with pytest.raises(InputError, match="every pixel is 3"):
        finder.find(np.full((40, 40), 3.0))
    with pytest.raises(InputError, match="saturated"):
        finder.find(image, saturation=400.0)
    Contaminants(fake({}), Config(normalisation="original")).find(image, saturation=400.0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Config(classes=("CR", "XX")), "no class XX"),
        (Config(classes=()), "no class is wanted"),
        (Config(priors={"YY": 0.5}), "priors: no class YY"),
        (Config(priors={"CR": 1.5}), "prior of CR: 1.5"),
        (Config(thresholds={"CR": -0.1}), "threshold of CR"),
    ],
)
def test_settings_that_make_no_sense(config, reason):
    with pytest.raises(InputError, match=reason):
        class_rules(CLASSES, config)


def test_networks_that_answer_another_question():
    trailed = CLASSES[0].model_copy(update={"name": "tracking_error"})
    for model in (fake({}, classes=()), fake({}, side=400, multiple=1), fake({}, classes=(trailed,))):
        with pytest.raises(InputError, match="no network that gives every pixel"):
            Contaminants(model)
    other = CLASSES[0].model_copy(update={"code": 2})
    with pytest.raises(InputError, match="class CR with code 2"):
        Contaminants(fake({}, classes=(other,)))
    with pytest.raises(ModelError, match="nonesuch"):
        load("nonesuch")


def test_load_takes_our_own_network_and_passes_on_how_it_runs(monkeypatch):
    asked = []
    monkeypatch.setattr(contaminants.Model, "load", lambda spec, **how: asked.append((spec, how)) or fake({}))
    finder = load(config=Config(runtime="openvino", verify=False), threads=2)
    assert asked == [(MODEL, {"verify": False, "threads": 2, "runtime": "openvino"})]
    assert finder.threads == 2
