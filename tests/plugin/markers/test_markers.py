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
