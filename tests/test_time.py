"""A time limit: every stage asks the clock, and a result comes back whatever it says. We move its hands ourselves."""
import itertools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

from neon.compress import CompressConfig, compress, compress_rows
from neon.compression.planner import load_planner, plan_budgets
from neon.compression.proposals import all_stages, plain_cuts
from neon.compression.search import Search, SearchConfig, reading_less, run_search, shape
from neon.foundations.core import Clock, NeonError, torch_generator
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.training import AnnealConfig, anneal, predict
from neon.methods.contract import Candidate, MethodConfig, compress_with, hold_out, rows_in_time
from neon.methods.guard import Guard

HURRY = SearchConfig(effort=0.25, rounds=1, children=6)


class Hands:
    "Hands of a clock that jump at each look, and count the looks."

    def __init__(self, jump: float = 0.0): self.time, self.jump, self.looks = 0.0, jump, 0

    def __call__(self) -> float:
        self.time, self.looks = self.time + self.jump, self.looks + 1
        return self.time


@pytest.fixture(scope="module")
def task():
    "Standardised features, classes, and a network that has learnt them."
    X, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor((X - X.mean(0))/X.std(0)).float(), torch.tensor(y)
    order = torch.randperm(len(x), generator=torch_generator(0, "rows"))
    x, y = x[order], y[order]
    wide = Architecture(30, (Layer(60), Layer(20), Layer(2, "identity")))
    network, = anneal([build_network(wide, torch_generator(0, "wide"))], x[:250], y[:250], AnnealConfig(150, 64, 3e-3))
    return network, (x[:250], y[:250]), (x[250:], y[250:])


def quick(task, **options):
    network, (x, y), validation = task
    settings = {"budget": 3.0, "validation": validation, "search": HURRY, "agent": None}
    return compress(network, x, y, **settings | options)


def weights(network): return torch.cat([p.flatten() for p in network.parameters()])


# -- whatever the clock says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("agent", [None, "generic"])
def test_a_result_always_comes_back(task, jump, agent):
    hands = Hands(jump)
    result = quick(task, time_limit=Clock(1.0, hands), agent=agent)
    assert result.network.architecture.n_params <= result.original.architecture.n_params
    assert result.how == "as it was" or result.guard.each.holds(result.drop)
    assert hands.time < 1.6 + 60*jump, "stages go on when the time is over"


@pytest.mark.parametrize("budget", ["classes", "values"])
def test_wide_layers_many_features_and_values_keep_to_the_clock(budget):
    rng = torch_generator(0, "wide")
    x = torch.randn(400, 300, generator=rng)
    y = (x[:, 0] > 0).long() if budget == "classes" else x[:, :1] + x[:, 1:2]
    network = build_network(Architecture(300, (Layer(700), Layer(2 if budget == "classes" else 1, "identity"))), rng)
    hands = Hands(0.002)
    result = compress(network, x, y, time_limit=Clock(1.0, hands), agent=None, search=HURRY)
    assert hands.time < 1.7 and result.network.architecture.n_params <= result.original.architecture.n_params


@pytest.mark.parametrize("method", ["uniform", "l1_oneshot", "distilled", "neon"])
def test_other_methods_stop_between_candidates(task, method):
    result = quick(task, time_limit=Clock(1.0, Hands(5.0)), method=method, agent="generic")
    assert result.how == "as it was" and result.tested == []


def test_no_candidate_is_asked_for_once_the_time_is_over(task):
    network, (x, y), validation = task
    hands, made = Hands(), []

    def slow(network, rows, guard, config):
        for n in itertools.count():
            made.append(n)
            hands.time += 0.4
            yield Candidate(plain_cuts(network, rows.fit.x)[n], "cut")

    compress_with(slow, network, hold_out(x, y, validation), config=MethodConfig((50.0,), time_limit=Clock(1, hands)))
    assert made == [0, 1, 2]


def test_the_guard_tests_what_was_found_though_the_time_has_just_ended(task):
    network, (x, y), validation = task
    hands = Hands()

    def late(network, rows, guard, config):
        cut = plain_cuts(network, rows.fit.x)[0]
        hands.time = 1.1
        yield Candidate(cut, "cut")

    verdict, = compress_with(late, network, hold_out(x, y, validation),
                             config=MethodConfig((50.0,), time_limit=Clock(1, hands)))
    assert verdict.chosen.candidate.how == "cut"


# -- without a limit, and with time enough -----------------------------------------------------------------------------


def test_no_limit_is_no_clock(task):
    first, second = quick(task), quick(task, time_limit=None)
    rows = hold_out(*task[1], task[2])
    open_end, = compress_rows(task[0], rows, CompressConfig((3.0,), agent=None, search=HURRY, time_limit=Clock()))
    never, = compress_rows(task[0], rows, CompressConfig((3.0,), agent=None, search=HURRY))
    assert torch.equal(weights(first.network), weights(second.network))
    assert torch.equal(weights(open_end.network), weights(never.network))


def test_time_enough_finds_as_much(task):
    free, limited = quick(task), quick(task, time_limit=Clock(1e6, Hands()))
    assert limited.network.architecture.n_params <= 4*free.network.architecture.n_params
    assert limited.drop.rows == free.drop.rows


def test_training_within_its_time_is_the_same_training(task):
    network, (x, y), _ = task
    settings = AnnealConfig(40, 64)
    free, = anneal([network], x, y, settings)
    enough, = anneal([network], x, y, settings, clock=Clock(1e6, Hands(1.0)))
    none, = anneal([network], x, y, settings, clock=Clock(0, Hands()))
    assert torch.equal(weights(free), weights(enough)) and torch.equal(weights(none), weights(network))


def test_a_training_that_is_short_of_time_still_ends_with_small_steps(task):
    network, (x, y), _ = task
    start = build_network(network.architecture, torch_generator(0, "start"))
    loss = lambda n: float(nn.functional.cross_entropy(predict(n, x), y))
    planned, = anneal([start], x, y, AnnealConfig(4000, 64, 0.02), clock=Clock(60, Hands(0.25)))
    assert loss(planned) < 0.1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_positive(task, limit):
    with pytest.raises(NeonError, match="time_limit must be None or positive"): quick(task, time_limit=limit)


# -- stages ------------------------------------------------------------------------------------------------------------


def test_stages_are_announced_in_order_with_size_and_time(task):
    network, (x, y), validation = task
    seen = []
    options = {"search": SearchConfig(effort=0.25, rounds=3, children=4)}
    config = MethodConfig((3.0,), agent=None, time_limit=Clock(100, Hands(1e-3)), options=options, callback=seen.append)
    compress_with("search", network, hold_out(x, y, validation), config=config)
    known = all_stages(options["search"])
    places = [known.index(stage) for stage in seen]
    assert places == sorted(places) and seen[0] == "plain cuts" and seen[-1] == "guard"
    left = [stage.left for stage in seen]
    assert left == sorted(left, reverse=True) and seen[-1].size <= network.architecture.n_params


def test_a_search_whose_time_is_over_adds_nothing(task):
    rows = hold_out(*task[1], task[2])
    search = Search(rows, task[0], [Guard(3.0)], HURRY, time_limit=Clock(0, Hands()))
    assert run_search(search) == [] and search.clock.over()


def test_in_little_time_fewer_networks_are_trained(task):
    rows, counts = hold_out(*task[1], task[2]), []
    networks = [build_network(shape(30, (w,), 2), torch_generator(0, w)) for w in range(1, 17)]
    for jump in (0.0, 0.15):
        search = Search(rows, task[0], [Guard(3.0)], SearchConfig(), time_limit=Clock(9.0, Hands(jump)))
        counts.append(len(search.add(networks, "some", search.training(), clock=search.clock.part(0.5))))
    assert counts[0] == 16 > counts[1] > 0, counts


def test_a_plan_that_is_broken_off_is_a_plan(task):
    network, (x, y), validation = task
    for jump in (0.0, 0.05, 10.0):
        plan, = plan_budgets(load_planner(), network, hold_out(x, y, validation), [3.0], clock=Clock(5, Hands(jump)))
        assert len(plan.visits) >= 1 and plan.network.architecture.n_params <= network.architecture.n_params


def test_features_leave_quickly_where_time_is_short(task):
    network, (x, _), _ = task
    for child in reading_less(network, x, seconds=0.0):
        assert predict(child, x).isfinite().all() and len(child.architecture.inputs) < 30


@pytest.mark.parametrize("metric", ["accuracy", "auc", "f1"])
def test_rare_classes_stay_among_fewer_rows(metric):
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(40_000, 3)).astype(np.float32)), torch.zeros(40_000, dtype=torch.long)
    y[:40] = 1
    network = build_network(Architecture(3, (Layer(4), Layer(2, "identity"))), torch_generator(0, "rare"))
    few = rows_in_time(network, hold_out(x, y), metric, Clock(1.0, Hands(0.005)))
    assert len(few.guard.y) < 5000 and all((part.y == 1).any() for part in (few.compare, few.guard))


# -- a guest that leaves no trace --------------------------------------------------------------------------------------


def test_settings_and_global_streams_are_left_alone(task):
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    old = np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.float64)
        quick(task, agent="generic")
        assert torch.get_default_dtype() == torch.float64
    finally: torch.set_default_dtype(dtype)
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    assert torch.equal(torch.rand(1), expected)
    assert (np.random.get_state()[1] == old).all()  # noqa: NPY002


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it(task, mode):
    free = quick(task)
    with mode():
        found = quick(task)
        assert not torch.is_grad_enabled()
    assert torch.equal(weights(found.network), weights(free.network))


def test_a_network_and_rows_made_in_inference_mode(task):
    network, (x, y), _ = task
    with torch.inference_mode():
        plain = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2))
        result = compress(plain, x + 0, y + 0, 5.0, agent=None, search=HURRY)
    assert result.network.architecture.n_params <= 682


def test_one_child_per_round(task):
    assert quick(task, search=SearchConfig(effort=0.25, rounds=1, children=1)).drop.points <= 3
