"""Survey profiles: all load, none is mistaken for another, mistakes in one are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tapetum.core.errors import InputError
from tapetum.surveys.profile import alert_profiles, all_profiles, load_profile, profile_names


def test_the_promised_surveys_are_there():
    assert {"ztf", "lsst", "winter", "pgir", "turbo"} <= set(profile_names())
    assert [profile.name for profile in all_profiles()] == profile_names()


def test_no_profile_recognises_what_another_does():
    profiles = alert_profiles()
    assert len(profiles) >= 5
    for one in profiles:
        for other in profiles:
            if one is not other:
                assert not set(one.alert.recognise) <= set(other.alert.recognise)


def test_a_profile_may_be_a_file_of_the_user(tmp_path: Path):
    text = Path(__file__).parents[1].joinpath("src/tapetum/surveys/profiles/winter.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace('name = "winter"', 'name = "mine"'))
    assert load_profile(str(mine)).name == "mine"
    assert "mine" not in profile_names()
    known = tmp_path / "config" / "tapetum" / "surveys"
    known.mkdir(parents=True)
    mine.rename(known / "mine.toml")
    assert "mine" in profile_names()
    assert "mine" in [profile.name for profile in all_profiles()]


def test_a_profile_of_the_user_is_called_what_it_says(tmp_path: Path):
    text = Path(__file__).parents[1].joinpath("src/tapetum/surveys/profiles/winter.toml").read_text()
    known = tmp_path / "config" / "tapetum" / "surveys"
    known.mkdir(parents=True)
    (known / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.toml: its name is 'winter'"):
        all_profiles()
    (known / "mine.toml").write_bytes(text.encode("utf-16"))
    with pytest.raises(InputError, match=r"mine\.toml: cannot be read"):
        all_profiles()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gian = 1.5", r"image\.defaults\.gian: .*did you mean gain\? Known here: gain, read_noise"),
        ('gain = "1.5"', r"image\.defaults\.gain: .*number"),
    ],
)
def test_a_mistyped_camera_is_told_what_may_stand_there(tmp_path: Path, line, message):
    (tmp_path / "mine.toml").write_text(f'name = "mine"\ntitle = "Mine"\n[image.defaults]\n{line}\n')
    with pytest.raises(InputError, match=message):
        load_profile(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('reference = "start"', 'reference = "whenever"'), r"alert\.time\.reference"),
        (("size = 81", "size = 81\ncolour = 3"), "colour"),
        (('name = "winter"', "name = winter"), "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change, message):
    text = Path(__file__).parents[1].joinpath("src/tapetum/surveys/profiles/winter.toml").read_text()
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(*change))
    with pytest.raises(InputError, match=message):
        load_profile(str(path))
    with pytest.raises(InputError, match="known: "):
        load_profile("nonesuch")
    with pytest.raises(InputError, match="no such survey profile"):
        load_profile(str(tmp_path / "none.toml"))
