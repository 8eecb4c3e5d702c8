"""Loads the supplement's compiled half and then pyfuse3, in the only order that works.

`_supplement` defines ``fuse_session_mount`` and is loaded into the global symbol scope, which the dynamic
linker searches before pyfuse3's own dependencies: so pyfuse3's call reaches us. Once pyfuse3 has been loaded
the other way it stays bound to libfuse's, hence the check.

Everything in nfsfuse takes pyfuse3 from here (``from nfsfuse.fuse.binding.libraries import pyfuse3``): sorted
import lines would put a plain ``import pyfuse3`` first.
"""

from __future__ import annotations

import os
import sys


class SupplementError(Exception):
    """The supplement is not in force, or the kernel does not offer what was asked for: nothing is mounted."""


if "pyfuse3" in sys.modules:
    raise SupplementError("pyfuse3 was imported before nfsfuse.fuse.binding.libraries, which must be first")

_dlopen_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from nfsfuse.fuse.binding import _supplement as _supplement
    from nfsfuse.fuse.notifications import _notifications as _notifications
except ImportError as exc:
    raise SupplementError(f"a compiled module is missing or broken ({exc}); run: pip install .") from exc
finally:
    sys.setdlopenflags(_dlopen_flags)

import pyfuse3 as pyfuse3  # noqa: E402

Request = _supplement.Request
current_request = _supplement.current_request
