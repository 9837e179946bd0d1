"""The one split of every data set: by object, from its name alone, so that no list has to be kept.

=======  ========  =================================================================
digit    role      use
=======  ========  =================================================================
0, 1, 2  held      never read for training, tuning or thresholds
3, 4     test      figures in cards and reports
5 ... 9  training  weights; one fifth of these objects for choices and calibration
=======  ========  =================================================================

The digit is ``int(sha1(object_id)[:8], 16) % 10``; a training object goes to validation when the next eight
hexadecimal digits, taken the same way, give 0 or 1.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import numpy as np

from tapetum.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

Role = Literal["held", "test", "validation", "fit"]
USED_ROLES: tuple[Role, ...] = ("fit", "validation", "test")
LEARNING: frozenset[Role] = frozenset({"fit", "validation"})


def role_of(object_id: str) -> Role:
    """Role of an object.

    Examples
    --------
    >>> role_of("ZTF18abaaewu"), role_of("ZTF18abaaewu") == role_of("ZTF18abaaewu")
    ('test', True)
    """
    digest = hashlib.sha1(object_id.encode(), usedforsecurity=False).hexdigest()
    digit = int(digest[:8], 16) % 10
    if digit < 3:
        return "held"
    if digit < 5:
        return "test"
    return "validation" if int(digest[8:16], 16) % 10 < 2 else "fit"


def select(object_ids: Sequence[str], role: Role) -> NDArray[np.bool_]:
    """True where an object has this role, shape (n,)."""
    return np.array([role_of(name) == role for name in object_ids], dtype=bool)


def require(object_ids: Iterable[str], roles: frozenset[Role]) -> None:
    """Refuse objects of any other role: the last guard before a network sees them.

    Raises
    ------
    UsageError
        Names the first object that may not be used and its role.
    """
    for name in object_ids:
        if (role := role_of(name)) not in roles:
            allowed = ", ".join(sorted(roles))
            raise UsageError(
                f"object {name} belongs to the {role} part of the split and may not be used here (only {allowed})"
            )
