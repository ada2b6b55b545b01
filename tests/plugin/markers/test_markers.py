"""The markers, wherever pytest lets one put them."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

PLACES = {
    "a function": """
        @pytest.mark.MARKER
        def test_holds(model):
            hold(model)

        @pytest.mark.MARKER
        def test_drifts(model):
            drift(model)
    """,
    "a method": """
        class TestStep:
            @pytest.mark.MARKER
            def test_holds(self, model):
                hold(model)

            @pytest.mark.MARKER
            def test_drifts(self, model):
                drift(model)
    """,
    "a class": """
        @pytest.mark.MARKER
        class TestStep:
            def test_holds(self, model):
                hold(model)

            def test_drifts(self, model):
                drift(model)

        class TestHeir(TestStep):
            pass
    """,
    "a class attribute": """
        class TestStep:
            pytestmark = [pytest.mark.MARKER]

            def test_holds(self, model):
                hold(model)

            class TestInner:
                def test_drifts(self, model):
                    drift(model)
    """,
    "a module": """
        pytestmark = pytest.mark.MARKER

        def test_holds(model):
            hold(model)

        def test_drifts(model):
            drift(model)
    """,
    "a parameter": """
        @pytest.mark.parametrize("step", [
            pytest.param(hold, marks=pytest.mark.MARKER, id="holds"),
            pytest.param(drift, marks=pytest.mark.MARKER, id="drifts"),
            pytest.param(drift, id="holds-nothing"),
        ])
        def test_step(model, step):
            step(model)
    """,
    "a parametrized test": """
        @pytest.mark.MARKER
        @pytest.mark.parametrize("size", [2, 8])
        @pytest.mark.parametrize("step", [hold, drift], ids=["holds", "drifts"])
        def test_step(model, size, step):
            step(model, size)
    """,
    "a TestCase with its model in setUp": """
        import unittest

        class TestStep(unittest.TestCase):
            def setUp(self):
                self.model = Net()
                drift(self.model)

            def tearDown(self):
                drift(self.model)

            @pytest.mark.MARKER
            def test_holds(self):
                hold(self.model)

            @pytest.mark.MARKER
            def test_drifts(self):
                drift(self.model)

        @pytest.mark.MARKER
        class TestAll(unittest.TestCase):
            setUp = TestStep.setUp

            def test_holds(self):
                hold(self.model)

            def test_drifts(self):
                drift(self.model)
    """,
    "a TestCase with its model in setUpClass": """
        import unittest

        class TestStep(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.model = Net()

            def setUp(self):
                drift(self.model)

            @pytest.mark.MARKER
            def test_drifts(self):
                drift(self.model)

            @pytest.mark.MARKER
            def test_holds(self):
                hold(self.model)
    """,
    "a TestCase with its model in an autouse fixture": """
        import unittest

        class TestStep(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def _model(self, model):
                self.net = model

            @pytest.mark.MARKER
            def test_drifts(self):
                drift(self.net)

            @pytest.mark.MARKER
            def test_holds(self):
                hold(self.net)
    """,
    "an IsolatedAsyncioTestCase": """
        import asyncio
        import unittest

        class TestStep(unittest.IsolatedAsyncioTestCase):
            def setUp(self):
                self.model = Net()
                drift(self.model)

            async def asyncSetUp(self):
                drift(self.model)

            @pytest.mark.MARKER
            async def test_holds(self):
                await asyncio.sleep(0)
                hold(self.model)

            @pytest.mark.MARKER
            async def test_drifts(self):
                await asyncio.sleep(0)
                drift(self.model)

            @pytest.mark.MARKER
            def test_drifts_without_waiting(self):
                drift(self.model)
    """,
    "a test of pytest-asyncio": """
        import asyncio
        import pytest_asyncio

        @pytest_asyncio.fixture
        async def net():
            await asyncio.sleep(0)
            return Net()

        @pytest.mark.MARKER
        @pytest.mark.asyncio
        async def test_holds(net):
            await asyncio.sleep(0)
            hold(net)

        @pytest.mark.asyncio
        @pytest.mark.MARKER
        async def test_drifts(net):
            await asyncio.sleep(0)
            drift(net)
    """,
    "a test of anyio": """
        import anyio

        @pytest.fixture(params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param

        @pytest.fixture
        async def net():
            await anyio.sleep(0)
            return Net()

        @pytest.mark.MARKER
        @pytest.mark.anyio
        async def test_holds(net):
            await anyio.sleep(0)
            hold(net)

        @pytest.mark.MARKER
        @pytest.mark.anyio
        async def test_drifts(net):
            await anyio.sleep(0)
            drift(net)
    """,
}


@pytest.mark.parametrize("marker", ["frozen_bn", "frozen"])
@pytest.mark.parametrize("place", PLACES)
def test_a_marker_guards_the_test_it_is_on(sessions: Sessions, place: str, marker: str) -> None:
    session = sessions.run(PLACES[place].replace("MARKER", marker))
    session.tells_apart()


def test_a_test_without_a_marker_is_not_guarded(sessions: Sessions) -> None:
    session = sessions.run("def test_step(model): drift(model)")
    assert session.outcomes == {"test_step": "passed"}


def test_frozen_minds_every_layer_and_frozen_bn_only_bn_layers(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen
        def test_drifts(model):
            nudge(model)

        @pytest.mark.frozen_bn
        def test_holds(model):
            nudge(model)
    """)
    session.tells_apart()
    assert session.summaries["test_drifts"].startswith("1 of 3 frozen layers changed: fc")


def test_a_marker_minds_only_the_modules_it_names(sessions: Sessions) -> None:
    session = sessions.run("""
        def step(model):
            model.bn2.train()
            model(batch())

        @pytest.mark.frozen_bn("bn1")
        def test_holds(model):
            step(model)

        @pytest.mark.frozen_bn("bn*", exclude="bn2")
        def test_holds_but_for_an_exception(model):
            step(model)

        @pytest.mark.frozen_bn("bn1", "bn2")
        def test_drifts(model):
            step(model)

        @pytest.mark.frozen_bn("bn?")
        def test_drifts_by_pattern(model):
            step(model)
    """)
    session.tells_apart()


def test_options_reach_the_guard(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.mark.frozen_bn(buffers=False)
        def test_holds_its_parameters(model):
            drift(model)

        @pytest.mark.frozen_bn(parameters=False)
        def test_drifts(model):
            drift(model)

        @pytest.mark.frozen_bn(parameters=False)
        def test_holds_its_buffers(model):
            hold(model)
            with torch.no_grad():
                model.bn1.weight.add_(1)

        @pytest.fixture
        def without_statistics():
            return nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))

        @pytest.mark.frozen_bn(allow_batch_stats=True)
        def test_holds_what_is_allowed(without_statistics):
            without_statistics(batch())

        @pytest.mark.frozen_bn
        def test_drifts_by_normalising_with_batch_statistics(without_statistics):
            without_statistics(batch())
    """)
    session.tells_apart()


def test_all_markers_of_a_test_hold_and_are_told_apart(sessions: Sessions) -> None:
    session = sessions.run("""
        pytestmark = pytest.mark.frozen("fc")

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_holds(model):
            hold(model)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_drifts(model):
            drift(model)

        @pytest.mark.frozen_bn("bn1")
        @pytest.mark.frozen_bn("bn2")
        def test_drifts_once(model):
            model.bn2.train()
            model(batch())

        @pytest.mark.frozen_bn
        def test_drifts_in_its_linear_layer(model):
            nudge(model)

        @pytest.mark.frozen_bn
        def test_drifts_everywhere(model):
            nudge(model)
            drift(model)
    """)
    session.tells_apart()
    both = session.texts["test_drifts"]
    assert "frozen_bn('bn1') on Net" in both
    assert "frozen_bn('bn2') on Net" in both
    assert "frozen('fc')" not in both
    assert "frozen_bn('bn1'): 1 of 1 frozen BN layer changed" in both
    assert "frozen_bn('bn2'): 1 of 1 frozen BN layer changed" in both
    assert "frozen_bn('bn2') on Net" in session.texts["test_drifts_once"]
    assert "frozen_bn('bn1')" not in session.texts["test_drifts_once"]
    assert session.first_line("test_drifts_once").startswith("1 of 1 frozen BN layer changed: bn2")
    assert "frozen('fc') on Net" in session.texts["test_drifts_in_its_linear_layer"]
    assert "frozen('fc') on Net" in session.texts["test_drifts_everywhere"]
    assert "frozen_bn() on Net" in session.texts["test_drifts_everywhere"]


def test_the_same_marker_on_module_and_function_counts_once(sessions: Sessions) -> None:
    session = sessions.run("""
        pytestmark = pytest.mark.frozen_bn

        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)

        @pytest.mark.frozen_bn
        def test_drifts(model):
            drift(model)

        @pytest.mark.frozen_bn("bn1")
        def test_drifts_under_both(model):
            drift(model)
    """)
    session.tells_apart()
    assert session.texts["test_drifts"].count("frozen_bn() on Net") == 1
    assert "frozen_bn() on Net" in session.texts["test_drifts_under_both"]
    assert "frozen_bn('bn1') on Net" in session.texts["test_drifts_under_both"]


def test_fixtures_are_no_part_of_the_step(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def net():
            net = Net()
            drift(net)
            yield net
            drift(net)

        @pytest.mark.frozen_bn
        def test_holds(net):
            hold(net)

        @pytest.mark.frozen_bn
        def test_drifts(net):
            drift(net)
    """)
    session.tells_apart()


def test_a_guard_by_fixture_or_by_import_minds_its_block_alone(sessions: Sessions) -> None:
    session = sessions.run("""
        import pytest_bninvariants

        def test_holds_around_the_block(model, frozen_bn):
            drift(model)
            with frozen_bn(model):
                hold(model)
            drift(model)

        def test_drifts_in_the_block(model, frozen_bn):
            with frozen_bn(model, "bn1"):
                drift(model)

        def test_holds_in_blocks_of_both_kinds(model, frozen, frozen_bn):
            with frozen(model, "fc"), frozen_bn(model):
                hold(model)

        def test_drifts_for_the_inner(model, frozen, frozen_bn):
            with frozen_bn(model), frozen(model, "fc"):
                nudge(model)

        def test_holds_by_import(model):
            with pytest_bninvariants.frozen(model), pytest_bninvariants.frozen_bn(model):
                hold(model)

        def test_drifts_by_import(model):
            with pytest_bninvariants.frozen_bn(model):
                drift(model)

        @pytest.mark.frozen("fc")
        def test_drifts_in_a_marked_test(model, frozen_bn):
            with frozen_bn(model):
                drift(model)
    """)
    session.tells_apart()


def test_a_guarded_callable_object_shows_something_useful(sessions: Sessions) -> None:
    session = sessions.run("""
        import functools

        def step(model, run):
            run(model)

        def decorated(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                return function(*args, **kwargs)
            return inner

        @pytest.mark.frozen_bn
        @decorated
        def test_drifts(model):
            drift(model)

        @decorated
        @pytest.mark.frozen_bn
        def test_holds(model):
            hold(model)
    """)
    session.tells_apart()
    assert ">   def test_drifts(model):" in session.texts["test_drifts"]
