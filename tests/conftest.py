"""Tests of many cases run a share of them by default: `pytest -m slow` runs the rest."""

from zlib import crc32

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked `share(n)` about one case in n stays; the others become slow. Which, its name decides."""
    for item in items:
        mark = item.get_closest_marker("share")
        if mark and crc32(item.nodeid.encode()) % mark.args[0]:
            item.add_marker("slow")
