"""Where the reference values and real images lie, for the tests that hold the toolkit against them."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden"
DATA = SHARED / "data"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="reference values (../shared/golden) not here")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="real images (../shared/data) not here")
