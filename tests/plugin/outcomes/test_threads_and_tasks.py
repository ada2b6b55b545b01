"""A verdict in a thread or a task reaches the test that started it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.plugin.outcomes.test_lost_findings import IMPORTS
from tests.plugin.sessions import Sessions


@pytest.fixture(autouse=True)
def _no_tasks_are_left() -> Iterator[None]:
    """Free tasks that nobody awaited here: asyncio logs them, in whatever test frees them."""
    yield
    gc.collect()


def test_a_verdict_in_a_thread_is_not_lost(sessions: Sessions) -> None:
    session = sessions.run(
        """
        ignored = "ignore::pytest.PytestUnhandledThreadExceptionWarning"
        pytestmark = pytest.mark.filterwarnings(ignored)

        def in_a_thread(target, *args):
            thread = threading.Thread(target=target, args=args, name="trainer")
            thread.start()
            thread.join()

        def catching(errors, *args):
            try:
                step(*args)
            except FrozenStateChanged as error:
                errors.append(error)

        def test_a_thread_drifts(model):
            in_a_thread(step, model)

        def test_a_future_drifts(model):
            with ThreadPoolExecutor() as pool:
                pool.submit(step, model)

        def test_a_future_that_is_asked_drifts(model):
            with ThreadPoolExecutor() as pool:
                pool.submit(step, model).result()

        def test_a_future_that_is_asked_holds(model):
            with ThreadPoolExecutor() as pool, pytest.raises(FrozenStateChanged):
                pool.submit(step, model).result()

        def test_a_thread_that_catches_it_holds(model):
            in_a_thread(catching, errors := [], model)
            assert len(errors) == 1
    """,
        before=IMPORTS,
    )
    session.tells_apart()
    said = session.says("test_a_thread_drifts")
    assert "note it was raised in thread 'trainer', from which it did not reach the test" in said


def test_a_gate_error_in_a_thread_is_not_lost(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from pytest_bninvariants import batch_invariant

        @pytest.mark.xfail
        @pytest.mark.parametrize("wrong", [
            lambda model: step(model, "bn9"),
            lambda model: guard(model, layers="bn1"),
            lambda model: batch_invariant(model, None),
        ])
        def test_it(model, wrong):
            with ThreadPoolExecutor() as pool:
                pool.submit(wrong, model)
    """,
        before=IMPORTS,
    )
    assert set(session.outcomes.values()) == {"failed"}
    assert len(session.outcomes) == 3
    for name in session.outcomes:
        assert "from which it did not reach the test" in session.says(name)


def test_a_verdict_in_a_task_is_not_lost(sessions: Sessions) -> None:
    session = sessions.run(
        """
        async def train(model):
            step(model)

        async def unawaited(model):
            task = asyncio.create_task(train(model))
            await asyncio.sleep(0.01)

        async def awaited(model):
            await asyncio.create_task(train(model))

        async def caught(model):
            with pytest.raises(FrozenStateChanged):
                await asyncio.create_task(train(model))

        async def in_a_group(model):
            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(train(model))

        async def in_an_executor(model):
            asyncio.get_running_loop().run_in_executor(None, step, model)
            await asyncio.sleep(0.1)

        @pytest.mark.parametrize("main", [unawaited, awaited, in_an_executor])
        def test_drifts(model, main):
            asyncio.run(main(model))

        @pytest.mark.asyncio
        @pytest.mark.parametrize("main", [unawaited, awaited, in_an_executor])
        async def test_async_drifts(model, main):
            await main(model)

        @pytest.mark.parametrize("main", [caught, in_a_group])
        def test_holds(model, main):
            asyncio.run(main(model))

        @pytest.mark.asyncio
        async def test_async_holds(model):
            with pytest.raises(FrozenStateChanged):
                step(model)

        def test_around_the_loop_holds(model):
            with pytest.raises(FrozenStateChanged):
                asyncio.run(train(model))
    """,
        "--show-capture=no",  # asyncio logs the tracebacks
        before=IMPORTS,
    )
    session.tells_apart()
    said = session.says("test_drifts[unawaited]")
    assert "note it was raised in a task that nobody awaited" in said
