"""Detections on contaminated pixels: the light decides, so that a star that was hit, or masked by mistake, stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tapetum.finders.transients import CandidateFlag
from tapetum.images.contaminants import Contaminant
from tapetum.images.detect import Detections, Note
from tapetum.images.psf import PsfModel
from tapetum.pipelines.candidates import Surface, VetoLimits, judge, measure_evidence
from tapetum.pipelines.contaminated import UNKNOWN, codes_near, contamination_of, imitators_of

SHAPE = (120, 160)
FWHM, NOISE = 2.6, 5.0
PSF = PsfModel.moffat(FWHM, 3.0, SHAPE)
PLACE = (60.3, 40.7)


def detections(x=PLACE[0], y=PLACE[1], **values):
    """One detection, a star of 30 sigma unless `values` say otherwise."""
    columns = {name: np.zeros(1) for name in Detections.__dataclass_fields__}
    columns |= {"x": np.array([x]), "y": np.array([y]), "snr": np.array([30.0]), "sign": np.ones(1, np.int8)}
    columns |= {name: np.full(1, FWHM) for name in ("fwhm_pix", "fwhm_psf_pix")}
    columns |= {"elongation": np.ones(1), "scale": np.ones(1, np.int32), "flags": np.zeros(1, np.int32)}
    return Detections(**{**columns, **{name: np.atleast_1d(value) for name, value in values.items()}})


def surface(rng, codes=None, *, star=0.0, hits=(), **more):
    """Noise, a star at `PLACE` of `star` times the noise of its flux, and pixels that a particle hit."""
    data = rng.normal(0, NOISE, SHAPE).astype(np.float32)
    stamp = PSF.stamp(*PLACE)
    j, i = int(PLACE[1] + 0.5) - PSF.half, int(PLACE[0] + 0.5) - PSF.half
    flux = star * NOISE * np.sqrt(PSF.neff(*PLACE))
    data[j : j + PSF.size, i : i + PSF.size] += flux * stamp
    for y, x, height in hits:
        data[y, x] += height
    noise = np.full(SHAPE, NOISE, np.float32)
    clear = np.zeros(SHAPE, np.uint8)
    return Surface(data, noise, PSF, None, clear != 0, clear, codes=codes, **more)


def mask(*places, code=Contaminant.CR):
    codes = np.zeros(SHAPE, np.uint16)
    for place in places:
        codes[place] |= np.uint16(code)
    return codes


CORE = (slice(40, 43), slice(59, 62))
AROUND = (slice(25, 58), slice(45, 78))


PARTICLE = np.array([0.1])  # sharpness; a star has 1


def share(found, ground, sharpness=PARTICLE):
    return float(contamination_of(found, ground, sharpness).fraction[0])


def test_without_a_mask_nobody_knows(rng):
    found = contamination_of(detections(), surface(rng, star=30), PARTICLE)
    assert (found.codes[0], np.isnan(found.fraction[0])) == (UNKNOWN, True)


def test_codes_are_those_within_the_radius_and_of_the_pixel_itself():
    codes = mask((40, 63), code=Contaminant.TRL) | mask((41, 60), code=Contaminant.SAT)
    x, y = (np.array([value]) for value in PLACE)
    assert codes_near(codes, x, y, np.array([1.0])) == Contaminant.SAT
    assert codes_near(codes, x, y, np.array([2.9])) == Contaminant.SAT | Contaminant.TRL
    assert codes_near(codes, np.array([60.5 - 1e-9]), np.array([41.49]), np.array([0.1])) == Contaminant.SAT
    assert codes_near(codes, np.array([-3.0]), np.array([500.0]), np.array([2.0])) == 0


def test_a_particle_is_contaminated_and_a_star_that_it_hits_is_not(rng):
    hits = ((41, 60, 400.0), (41, 61, 300.0))
    hit = mask((41, 60), (41, 61))
    assert share(detections(), surface(rng, hit, hits=hits)) > 0.9
    assert share(detections(), surface(rng, hit, star=200, hits=hits)) < 0.5
    assert share(detections(), surface(rng, mask((41, 60)), star=30)) < 0.5


def test_a_star_whose_core_is_masked_by_mistake_is_confirmed_by_its_wings(rng):
    assert share(detections(), surface(rng, mask(CORE), star=60)) == 0
    assert share(detections(), surface(rng, mask(AROUND), star=60)) > 0.9  # nothing is left to say otherwise
    empty = surface(rng, mask(CORE), hits=((41, 60, 600.0), (40, 60, 300.0), (42, 61, 200.0)))
    assert share(detections(), empty) > 0.5


def test_what_has_the_neighbours_of_a_star_is_no_particle(rng):
    ground, star = surface(rng, mask(AROUND), star=10), np.array([0.8])
    assert share(detections(snr=10.0), ground, star) == 0
    assert share(detections(snr=10.0), ground) > 0.9
    assert share(detections(snr=10.0, flags=int(Note.BAD_FIT)), ground, star) > 0.9  # a thick track
    assert share(detections(snr=10.0), replace(ground, codes=mask(AROUND, code=Contaminant.P)), star) > 0.9


@pytest.mark.parametrize("code", [Contaminant.SAT, Contaminant.BBG, Contaminant.NEB, Contaminant.FR])
def test_classes_that_imitate_nothing_rule_nothing_out(rng, code):
    ground = surface(rng, mask(AROUND, code=code), hits=((41, 60, 400.0),))
    found = contamination_of(detections(), ground, PARTICLE)
    assert (found.codes[0], found.fraction[0]) == (code, 0)


def test_pixels_that_cannot_be_used_do_not_count(rng):
    ground = surface(rng, mask((41, 60)), star=30, hits=((41, 60, 9000.0),))
    assert share(detections(), ground) > 0.5
    ground.unusable[41, 60] = 1
    assert share(detections(), ground) == pytest.approx(0, abs=0.01)


def test_where_a_kernel_has_blurred_the_difference_the_template_is_taken_away(rng):
    ground = surface(rng, mask((41, 60), (41, 61)), star=200, hits=((41, 60, 400.0), (41, 61, 300.0)))
    host = surface(np.random.default_rng(0), star=200).sharp
    seen = replace(ground, template=host, blurred=True)
    assert share(detections(), ground) < 0.5 < share(detections(), seen)


def test_long_trails_rule_out_what_lies_on_them_but_not_streaks_stars_and_comets(rng):
    long, short = ((slice(39, 44), slice(0, 160)), (slice(39, 44), slice(50, 72)))
    faint = detections(snr=7.0)
    trail = surface(rng, mask(long, code=Contaminant.TRL), star=7)
    assert share(faint, trail) > 0.5
    assert share(faint, surface(rng, mask(short, code=Contaminant.TRL), star=7)) == 0
    assert share(detections(), surface(rng, mask(long, code=Contaminant.TRL), star=30)) == 0
    line = {"length_pix": 40.0, "x1": 40.0, "x2": 80.0, "y1": 41.0, "y2": 41.0}
    for own in (Note.TRAIL, Note.EXTENDED):
        found = contamination_of(detections(snr=7.0, flags=int(own), **line), trail, PARTICLE)
        assert (found.codes[0], found.fraction[0]) == (Contaminant.TRL, 0)


@pytest.mark.parametrize("code", [Contaminant.HCL, Contaminant.CR])
def test_a_line_along_a_bad_row_or_a_track_is_no_streak(rng, code):
    row = surface(rng, mask((41, slice(0, 160)), code=code))
    line = {"length_pix": 40.0, "x1": 40.0, "x2": 80.0, "y1": 41.4, "y2": 41.4}
    streak, track = (detections(flags=int(own), **line) for own in (Note.TRAIL, Note.TRAIL | Note.SHARP))
    assert share(streak, row) == (1 if code == Contaminant.HCL else 0)  # networks take streaks for particles
    assert share(track, row) == 1
    across = {**line, "x1": 60.0, "x2": 60.0, "y1": 21.0, "y2": 61.0}
    assert share(detections(flags=int(Note.TRAIL), **across), row) < 0.1


def test_what_adds_light_makes_nothing_fainter():
    found = detections(sign=np.array([-1], np.int8), snr=7.0)
    codes = Contaminant(int(imitators_of(found, PARTICLE)[0]))
    assert not codes & (Contaminant.CR | Contaminant.HP | Contaminant.TRL | Contaminant.P)
    assert codes & Contaminant.DP
    assert codes & Contaminant.DCL


def test_the_veto_is_a_flag_and_can_be_turned_off(rng):
    ground = surface(rng, mask((41, 60)), hits=((41, 60, 400.0),))
    evidence = measure_evidence(detections(), ground)
    assert judge(detections(), evidence, VetoLimits())[0] & CandidateFlag.CONTAMINATED
    assert not judge(detections(), evidence, VetoLimits(contaminated=1.1))[0] & CandidateFlag.CONTAMINATED
    unknown = measure_evidence(detections(), replace(ground, codes=None))
    assert not judge(detections(), unknown, VetoLimits())[0] & CandidateFlag.CONTAMINATED


def test_no_detections_are_no_trouble(rng):
    none = detections()[np.zeros(1, bool)]
    found = contamination_of(none, surface(rng, mask((41, 60))), np.empty(0))
    assert (len(found.codes), len(found.fraction)) == (0, 0)
