"""The report of `bench peers`: figures and ratios of the peers that are there, and words for those that are not."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from benchmarks import install
from benchmarks.peers.bench import assembled, targets
from benchmarks.peers.settings import PeersSettings
from benchmarks.peers.subjects import Run, at_share, spread
from benchmarks.settings import Unavailable

OURS = [Run(20_000, 10.0, 20.0), Run(30_000, 12.0, 30.0), Run(40_000, 14.0, 40.0)]
DBOS = [Run(1_000, 40.0, 90.0), Run(1_000, 40.0, 90.0), Run(1_000, 40.0, 90.0)]
FAUST = [Run(4_000, 10.0, 30.0), Run(5_000, 10.0, 30.0), Run(4_000, 10.0, 30.0)]


def test_ratios_are_medians_within_a_turn_and_missing_peers_are_said_to_be_missing() -> None:
    report = assembled(
        PeersSettings(),
        {"cores": 2},
        {"sagalog": OURS, "dbos": DBOS, "faust": FAUST},
        {"temporal": "go is not installed"},
    )
    assert report.ratios == {
        "throughput_vs_dbos": 30.0,
        "p50_vs_dbos": 0.3,
        "throughput_vs_faust": 6.0,
        "p50_vs_faust": 1.2,
    }
    assert list(report.figures) == [
        f"{name}_{figure}"
        for name in ("sagalog", "dbos", "faust")
        for figure in ("steps_per_second", "workflow_p50", "workflow_p99")
    ]
    document = json.loads(json.dumps(report.document()))
    assert document["bench"] == "peers"
    assert document["figures"]["sagalog_steps_per_second"] == {
        "unit": "steps/s",
        "min": 20_000,
        "median": 30_000,
        "max": 40_000,
    }
    assert document["environment"]["temporal"] == "not available: go is not installed"
    assert document["environment"]["dbos"] == "3.4.0"
    assert "temporal: not available: go is not installed" in report.notes
    assert not any("temporal" in name for name in (*report.figures, *report.ratios))


def test_without_any_peer_there_are_our_figures_and_no_ratio() -> None:
    report = assembled(PeersSettings(), {}, {"sagalog": OURS}, {"dbos": "refused"})
    assert not report.ratios
    assert len(report.figures) == 3
    assert any("No peer is here" in note for note in report.notes)


@pytest.mark.parametrize(
    ("dbos", "faust", "verdicts"),
    [
        ((30.0, 0.3), (21.0, 0.4), ("21 times faust's (reached)", "0.4 of faust's (reached)")),
        ((30.0, 0.6), (19.0, 0.4), ("19 times faust's (not reached)", "0.6 of dbos's (not reached)")),
    ],
)
def test_targets_are_held_against_the_peer_that_is_hardest_to_beat(
    dbos: tuple[float, float], faust: tuple[float, float], verdicts: tuple[str, str]
) -> None:
    ratios = {
        "throughput_vs_dbos": dbos[0],
        "p50_vs_dbos": dbos[1],
        "throughput_vs_faust": faust[0],
        "p50_vs_faust": faust[1],
    }
    said = targets(ratios, ["dbos", "faust"])
    assert all(verdict in said for verdict in verdicts)


def test_in_flight_is_spread_without_loss() -> None:
    assert spread(1_000, 3) == [334, 333, 333]
    assert spread(1, 2) == [1, 0]


def test_a_share_of_few_values_is_one_of_them() -> None:
    assert at_share([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert at_share([1.0, 2.0], 0.99) == 2.0


def test_a_failed_installation_says_its_last_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "home", lambda name: tmp_path / name)
    said: list[str] = []

    def refuse(package: str, of: str) -> str:
        raise Unavailable(f"{package} is not installed, which comes with {of}")

    monkeypatch.setattr(install, "_program", refuse)
    with pytest.raises(Unavailable, match=r"npm is not installed, which comes with Node\.js"):
        install.npm_package("peer", "a-package", "1.0.0", said.append)
    assert not (tmp_path / "peer" / "npm").exists()
    assert said == [f"installing into {tmp_path / 'peer' / 'npm'} (once) …"]


def test_a_command_that_fails_or_hangs_makes_its_peer_unavailable() -> None:
    failing = [sys.executable, "-c", "print('first'); print('no such version'); raise SystemExit(3)"]
    with pytest.raises(Unavailable, match=r"^trying failed: no such version$"):
        install.run("trying", failing, 10)
    with pytest.raises(Unavailable, match=r"^waiting did not end within 0\.2 s$"):
        install.run("waiting", [sys.executable, "-c", "import time; time.sleep(20)"], 0.2)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    parent = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]]); time.sleep(60)"
    noted = tmp_path / "pid"
    with pytest.raises(Unavailable):
        install.run("building", [sys.executable, "-c", parent, child, str(noted)], 3)
    assert is_gone(int(noted.read_text()))


def is_gone(pid: int) -> bool:
    """Within two seconds; whoever inherits it may be slow to take note."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
