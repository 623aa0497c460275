"""Over a link that delays, stalls and cuts connections, a run gives the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.lossy_link import run_over_link, undisturbed_digests
from support.proxy import Link

LINK = Link(bytes_per_second=200_000, delay=(0.005, 0.02), loss=0.2)


@pytest.mark.parametrize(
    "uplink", ["balanced", pytest.param("quantize(8)", marks=pytest.mark.slow)]
)
def test_a_lossy_link_changes_nothing_but_the_time(uplink: str, tmp_path: Path) -> None:
    wanted = undisturbed_digests(tmp_path / "undisturbed", uplink, 2, "tiny")
    seen = run_over_link(tmp_path / "lossy", uplink, 2, LINK, 200, "tiny")
    assert seen["digests"] == wanted
    assert seen["lost"] > 0.1 * seen["segments"]
