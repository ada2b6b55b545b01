"""Where no model is found, the message says what there is."""

from __future__ import annotations

from tests.plugin.markers.gate_messages import problem
from tests.plugin.sessions import Sessions


def test_without_a_model_the_message_says_what_there_is(sessions: Sessions) -> None:
    session = sessions.run(
        """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.loss = nn.MSELoss()

        @pytest.fixture
        def number():
            return 3

        @pytest.fixture
        def trainer():
            return Trainer(Net())

        @pytest.fixture
        def setup():
            return {"net": Net(), "rate": 0.1}

        @pytest.fixture
        def pair():
            return 1, Net()

        @pytest.mark.frozen_bn
        def test_no_fixtures():
            hold(Net())

        @pytest.mark.frozen_bn
        def test_other_fixtures(number):
            hold(Net())

        @pytest.mark.frozen_bn
        def test_loss():
            loss = nn.MSELoss()

        @pytest.mark.frozen_bn
        def test_in_an_object(trainer):
            hold(trainer.model)

        @pytest.mark.frozen_bn
        def test_in_a_mapping(setup):
            hold(setup["net"])

        @pytest.mark.frozen_bn
        def test_in_a_tuple(pair, trainer):
            hold(pair[1])

        @pytest.mark.frozen_bn(model="setup")
        def test_a_mapping_by_name(setup):
            hold(setup["net"])
    """,
        "-pno:asyncio",  # it adds a fixture of its own to every test
    )
    assert set(session.outcomes.values()) == {"failed"}
    hint = (
        "add one, or use the fixture of the same name in the test's body: "
        'with frozen_bn(model, "backbone"): train_step(model, batch)'
    )
    said = {name: problem(session, name) for name in session.texts}
    assert (
        said["test_no_fixtures"] == f"the test has no model fixture (it takes no fixtures); {hint}"
    )
    assert said["test_other_fixtures"].startswith("the test has no model fixture (its fixtures ")
    assert "number (int)" in said["test_other_fixtures"]
    assert said["test_other_fixtures"].endswith(hint)
    assert said["test_in_an_object"].endswith("; say model='trainer.model'")
    assert said["test_in_a_mapping"].endswith("; say model='setup.net'")
    assert said["test_in_a_tuple"].endswith("; say model='pair.1' or model='trainer.model'")
    assert said["test_a_mapping_by_name"].startswith("model='setup' is not a torch.nn.Module but {")
    assert said["test_a_mapping_by_name"].endswith("; say model='setup.net'")


def test_a_path_that_leads_nowhere_says_where_it_breaks(sessions: Sessions) -> None:
    session = sessions.run("""
        class Trainer:
            def __init__(self):
                self.model = Net()

            @property
            def broken(self):
                raise AttributeError("never set")

        @pytest.fixture
        def trainer():
            return Trainer()

        @pytest.fixture
        def pair():
            return 1, Net()

        @pytest.mark.frozen_bn(model="teacher")
        def test_no_such_fixture(trainer):
            pass

        @pytest.mark.frozen_bn(model="trainer.net")
        def test_no_such_attribute(trainer):
            pass

        @pytest.mark.frozen_bn(model="trainer.model.bn9")
        def test_no_such_module(trainer):
            pass

        @pytest.mark.frozen_bn(model="trainer.broken")
        def test_broken_property(trainer):
            pass

        @pytest.mark.frozen_bn(model="pair.7")
        def test_no_such_item(pair):
            pass

        @pytest.mark.frozen_bn(model="pair.one")
        def test_no_such_key(pair):
            pass

        @pytest.mark.frozen_bn(model="trainer")
        def test_no_module(trainer):
            pass

        @pytest.mark.frozen_bn(model="")
        def test_empty(trainer):
            pass
    """)
    assert set(session.outcomes.values()) == {"failed"}
    said = {name: problem(session, name) for name in session.texts}
    assert said["test_no_such_fixture"].startswith(
        "model='teacher': the test has no fixture 'teacher'; its "
    )
    assert "'trainer'" in said["test_no_such_fixture"]
    assert said["test_no_such_attribute"] == (
        "model='trainer.net': 'trainer' is a Trainer and has no 'net'; say model='trainer.model'"
    )
    assert said["test_no_such_module"].startswith(
        "model='trainer.model.bn9': 'trainer.model' is a Net and has no 'bn9'"
    )
    assert "'trainer' is a Trainer and has no 'broken'" in said["test_broken_property"]
    assert said["test_no_such_item"] == (
        "model='pair.7': 'pair' is a tuple and has no '7'; say model='pair.1'"
    )
    assert "'pair' is a tuple and has no 'one'" in said["test_no_such_key"]
    assert said["test_no_module"].startswith("model='trainer' is not a torch.nn.Module but <")
    assert said["test_no_module"].endswith("(Trainer); say model='trainer.model'")
    assert said["test_empty"].startswith("model='': ")
