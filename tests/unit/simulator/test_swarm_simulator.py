"""The simulator: small runs whose outcome is known, and that the same seed gives the same run."""

from __future__ import annotations

import random
import statistics

import pytest

from bench.placement import best_weakest
from shoal.types import Span
from simulator.churn_model import ChurnModel
from simulator.sim_metrics import SimMetrics, level_bound
from simulator.swarm_simulator import Scenario, Simulator

STEADY = ChurnModel(mean_session_s=1e9)


def test_a_small_swarm_under_churn() -> None:
    """Everything stays served, near the bound, with few moves; twice the same."""
    scenario = Scenario(servers=60, blocks=24, hours=3.0, seed=1)
    report = Simulator(scenario).run()
    assert report == Simulator(scenario).run()
    assert report.coverage_worst == 1.0
    assert 0.7 < report.weakest_share <= 1.0
    assert report.moves_per_server_hour <= 1.0
    assert 50 < report.servers < 70
    assert report.route_s > 0
    assert len(report.history) == 3 * 12


def test_without_churn_nobody_moves_for_long() -> None:
    """A swarm that nobody joins or leaves comes to rest."""
    reports = [
        Simulator(Scenario(blocks=30, hours=hours, redundancy=8.0, population=STEADY)).run() for hours in (6.0, 12.0)
    ]
    assert reports[0].moves == reports[1].moves
    assert reports[1].coverage_worst == 1.0
    assert reports[1].servers == Scenario(blocks=30, redundancy=8.0).num_servers


def test_many_servers_do_not_run_after_one_weak_block() -> None:
    """In a large swarm what a block lacks is little for all, though it is much for one server: nearly nobody moves."""
    report = Simulator(Scenario(servers=300, hours=0.5)).run()
    assert report.moves_per_server_hour < 0.1
    assert report.weakest_share > 0.7


def test_redundancy_counts_servers_that_serve() -> None:
    """Joining servers do not count, and blocks that fit into a memory but are not held do not either."""
    report = Simulator(Scenario(hours=6.0, redundancy=3.0)).run()
    assert report.serving_per_block == pytest.approx(3.0, abs=0.5)
    assert report.moves_per_server_hour <= 1.0


def test_a_tally_weights_by_time() -> None:
    """Half of the time one block of two is served, then both."""
    tally = SimMetrics(2)
    tally.population(0.0, 1)
    tally.join(0.0, 8.0, 2)
    tally.serve(0.0, Span(0, 1), 8.0, 1)
    assert not tally.covered()
    tally.serve(1800.0, Span(1, 2), 4.0, 1)
    tally.advance(3600.0)
    report = tally.report(1.0, [])
    assert (report.coverage_worst, report.coverage_mean) == (0.5, 0.75)
    assert (report.weakest_rows_per_s, report.bound_rows_per_s, report.weakest_share) == (2.0, 4.0, 0.5)
    assert report.serving_per_block == 0.75


def test_sessions_are_heavy_tailed() -> None:
    """The mean is what was asked for, the median far below, and those who are there at a moment have long to stay."""
    rng, population = random.Random(0), ChurnModel(mean_session_s=1000.0)
    new = [population.newcomer(rng).stays_s for _ in range(20_000)]
    there = [population.newcomer(rng, present=True).stays_s for _ in range(20_000)]
    assert statistics.mean(new) == pytest.approx(1000, rel=0.1)
    assert statistics.median(new) == pytest.approx(240, rel=0.1)  # scale · ln(2)², scale = mean / 2
    assert statistics.mean(there) == pytest.approx(3000, rel=0.15)  # E[X²] / 2E[X]


@pytest.mark.parametrize("seed", range(20))
def test_no_placement_exceeds_the_bound(seed: int) -> None:
    """The exact optimum of small swarms is at most the bound, which counts the memories too."""
    rng = random.Random(seed)
    blocks = rng.randint(3, 6)
    powers = tuple((rng.uniform(1, 8), rng.randint(1, blocks)) for _ in range(rng.randint(3, 5)))
    if sum(most for _, most in powers) >= blocks:
        assert best_weakest(blocks, powers) <= level_bound(blocks, powers) * (1 + 1e-9)
    assert level_bound(2, [(8.0, 1), (2.0, 1)]) == pytest.approx(2.0)
    assert level_bound(2, []) == 0.0


def test_the_bound_follows_who_serves() -> None:
    """A server that has gone is not counted on any more."""
    tally = SimMetrics(2)
    tally.join(0.0, 8.0, 2)
    tally.join(0.0, 4.0, 1)
    tally.part(1800.0, 4.0, 1)
    tally.advance(3600.0)
    assert tally.report(1.0, []).bound_rows_per_s == pytest.approx(5.0)  # 6, then 4
