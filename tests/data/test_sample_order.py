from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from odise_pl.data.records import DataError
from odise_pl.data.sample_order import EvalPlan, Piece, TrainPlan, buffered_order, limit_sizes

SIZES = st.lists(st.integers(0, 9), max_size=6).map(lambda sizes: (*sizes, 12))
SMALL = st.integers(1, 3)


def refs(piece: Piece) -> list[tuple[int, int]]:
    """Shard and place of the samples in their order of use."""
    return [(int(piece.shards[i]), int(piece.indices[i])) for i in piece.order]


def epoch(plan: TrainPlan, number: int, workers: int) -> list[tuple[int, int]]:
    pieces = [plan.piece(number, rank, w, workers) for rank in range(plan.world_size) for w in range(workers)]
    for place, piece in enumerate(pieces):
        assert sorted(piece.order.tolist()) == list(range(len(piece)))
        assert len(piece) == plan.batch_size * len(range(place % workers, plan.batches, workers))
    return [ref for piece in pieces for ref in refs(piece)]


@given(SIZES, SMALL, SMALL, SMALL, st.integers(0, 3), st.integers(0, 5))
def test_one_pass_has_no_duplicates(
    sizes: tuple[int, ...], batch: int, ranks: int, workers: int, number: int, buffer: int
) -> None:
    plan = TrainPlan(sizes, batch, ranks, seed=3, buffer=buffer)
    dealt = epoch(plan, number, workers)
    assert len(dealt) == plan.batches * batch * ranks
    assert sum(sizes) - batch * ranks < len(dealt) <= sum(sizes)
    assert set(Counter(dealt).values()) == {1}
    assert all(0 <= index < sizes[shard] for shard, index in dealt)


@given(SIZES, SMALL, SMALL, SMALL, st.integers(9, 40), st.integers(1, 5))
def test_all_samples_are_used_before_any_repeats(
    sizes: tuple[int, ...], batch: int, ranks: int, workers: int, length: int, epochs: int
) -> None:
    plan = TrainPlan(sizes, batch, ranks, epoch_length=length)
    dealt = Counter(ref for number in range(epochs) for ref in epoch(plan, number, workers))
    passes, rest = divmod(plan.batches * batch * ranks * epochs, sum(sizes))
    times = Counter(dealt.values())
    assert times[passes + 1] == rest
    assert passes == 0 or times[passes] == sum(sizes) - rest


def test_order_depends_on_seed_and_epoch() -> None:
    sizes = (7, 8, 9)
    plan = TrainPlan(sizes, 2, 1, seed=1)
    assert refs(plan.piece(4, 0, 0, 2)) == refs(TrainPlan(sizes, 2, 1, seed=1).piece(4, 0, 0, 2))
    orders = [tuple(refs(TrainPlan(sizes, 2, seed=s).piece(e, 0, 0, 1))) for s in (1, 2) for e in (0, 1)]
    assert len(set(orders)) == 4


def test_passes_distribute_a_shard_differently() -> None:
    plan = TrainPlan((12,), 2)
    shares = {frozenset(refs(plan.piece(number, 0, 0, 2))) for number in range(4)}
    assert len(shares) > 1


def test_each_worker_opens_few_shards() -> None:
    plan = TrainPlan((10,) * 40, 5, world_size=2)
    shards = [len(set(plan.piece(0, rank, w, 4).shards.tolist())) for rank in range(2) for w in range(4)]
    assert max(shards) <= 6  # 40 shards for 8 workers, and one more where a cut falls within a shard


@given(SIZES, SMALL, SMALL, SMALL)
def test_evaluation_covers_every_sample_once(
    sizes: tuple[int, ...], batch: int, ranks: int, workers: int
) -> None:
    plan = EvalPlan(sizes, batch, ranks)
    pieces = [plan.piece(rank, worker, workers) for rank in range(ranks) for worker in range(workers)]
    used = [ref for piece in pieces for ref in refs(piece)]
    assert used == [(shard, index) for shard, size in enumerate(sizes) for index in range(size)]
    numbers = [plan.numbers(rank, worker, workers) for rank in range(ranks) for worker in range(workers)]
    assert max(map(len, numbers)) - min(map(len, numbers)) <= 1
    assert [number for some in numbers for number in some] == list(range(plan.total))
    assert [sum(map(plan.length, some)) for some in numbers] == list(map(len, pieces))
    for rank in range(ranks):
        assert plan.batches(rank) == sum(map(len, numbers[rank * workers : (rank + 1) * workers]))
    assert sum(plan.batches(rank) for rank in range(ranks)) == plan.total == -(-sum(sizes) // batch)


@given(SIZES, SMALL, SMALL, st.sets(st.integers(0, 30)))
def test_finished_batches_are_skipped(sizes: tuple[int, ...], batch: int, ranks: int, done: set[int]) -> None:
    whole, rest = EvalPlan(sizes, batch), EvalPlan(sizes, batch, ranks, frozenset(done))
    used = [ref for rank in range(ranks) for ref in refs(rest.piece(rank, 0, 1))]
    every = refs(whole.piece(0, 0, 1))
    batches = [every[start : start + batch] for start in range(0, len(every), batch)]
    assert used == [ref for number, some in enumerate(batches) if number not in done for ref in some]


@given(st.integers(0, 60), st.integers(0, 20), st.integers(0, 9))
def test_shuffle_buffer_limits_read_ahead(length: int, buffer: int, seed: int) -> None:
    order = buffered_order(length, buffer, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(length))
    assert (order < np.arange(length) + max(buffer, 1)).all()


def test_shuffle_buffer_shuffles() -> None:
    order = buffered_order(1000, 100, np.random.default_rng(0))
    assert np.abs(order - np.arange(1000)).mean() > 50


def test_limit_sizes() -> None:
    assert limit_sizes((3, 4, 5), None) == (3, 4, 5)
    assert limit_sizes((3, 4, 5), 5) == (3, 2, 0)
    assert limit_sizes((3, 4, 5), 99) == (3, 4, 5)


@pytest.mark.parametrize(
    "plan",
    [
        {"sizes": (3,), "batch_size": 4},
        {"sizes": (9,), "batch_size": 2, "world_size": 2, "epoch_length": 3},
        {"sizes": (0,), "batch_size": 1, "epoch_length": 3},
    ],
)
def test_epoch_without_batches_is_rejected(plan: dict) -> None:
    with pytest.raises(DataError, match=r"data\.epoch_length .* data\.batch_size"):
        TrainPlan(**plan)
