"""Under @given all ranks draw the same examples, and shrink together what one of them fails."""

from __future__ import annotations

from collections.abc import Callable

from tests.plugin.sessions import Session

Run = Callable[..., Session]

DRAWS = """
from hypothesis import HealthCheck, assume, given, seed, settings, strategies as st

def same(number):
    numbers = [torch.zeros(1) for _ in range(distributed.get_world_size())]
    distributed.all_gather(numbers, torch.tensor([float(number)]))
    assert [int(each) for each in numbers] == [number] * len(numbers)
"""


def test_all_ranks_draw_the_same(run: Run) -> None:
    session = run(
        DRAWS
        + """
@pytest.mark.ranks(3)
@given(st.integers(0, 1000))
def test_holds(number):
    same(number)

@ranks
@seed(7)
@settings(max_examples=20, deadline=1)
@given(st.data())
def test_holds_with_settings(data):
    number = data.draw(st.integers(0, 1000))
    time.sleep(0.01 * rank())
    same(number)

@ranks
@given(st.integers(0, 1000))
def test_holds_where_one_rank_rejects_more(number):
    same(number)
    if rank() == 1:
        assume(number % 2)
"""
    )
    assert session.outcomes == dict.fromkeys(session.outcomes, "passed")


def test_what_one_rank_fails_all_shrink(run: Run) -> None:
    session = run(
        DRAWS
        + """
@ranks
@given(st.integers(0, 1000))
def test_fails_on_one(number):
    same(number)
    if rank() == 1:
        assert number < 17

@ranks
@given(st.integers(0, 1000))
def test_fails_differently(number):
    same(number)
    if rank() == 1:
        assert number < 17
    elif number >= 30:
        raise ValueError(number)

@ranks
@pytest.mark.frozen_bn
@given(size=st.integers(2, 30))
def test_drifts_on_one(kept, size):
    (drift if rank() == 1 and size > 5 else hold)(kept, size)
"""
    )
    text = session.texts["test_fails_on_one"]
    assert text.startswith("rank 1: assert 17 < 17\n")
    assert "number=17" in text
    assert text.rstrip().endswith("passed what another rank failed in")
    assert "all ranks drew from @hypothesis.seed(" in session.output
    assert session.texts["test_fails_differently"].startswith("rank ")
    assert "number=17" in session.texts["test_fails_differently"]
    assert "number=30" in session.texts["test_fails_differently"]
    assert session.texts["test_drifts_on_one"].startswith("rank 1: 2 of 2 frozen BN layers changed")
    assert "size=6" in session.texts["test_drifts_on_one"]


def test_ranks_that_draw_apart_are_told_apart_and_do_not_wait(run: Run) -> None:
    session = run(
        DRAWS
        + """
@ranks
@given(st.data())
def test_draws_apart(data):
    data.draw(st.booleans() if rank() == 0 else st.lists(st.integers()))

@ranks
@given(st.booleans())
def test_skips_on_one(flag):
    if rank() == 1:
        pytest.skip("here")
"""
    )
    assert set(session.outcomes.values()) == {"failed"}
    apart = session.texts["test_draws_apart"]
    assert "what a strategy, assume() or target() does must not depend on the rank" in " ".join(
        apart.split()
    )
    assert session.texts["test_skips_on_one"].startswith("rank 1: skipped this test (here), but")
