"""Huge memory pages for the C library's allocations, where the kernel offers them on request.

XLA's processor backend takes its work space anew in every step. With pages of 4 KiB a step of the main job meets
85,000 page faults, with huge pages 500, and takes a quarter less time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages() -> None:
    """Starts this program again with huge pages; returns where there is nothing to gain.

    The C library reads the setting when a process starts, so that it can't be changed from within. A variable that
    is set already, to whatever value, is left alone.
    """
    offered = OFFERED.read_text(encoding="utf-8") if OFFERED.exists() else ""
    if VARIABLE in os.environ or "[madvise]" not in offered:
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: SETTING})
