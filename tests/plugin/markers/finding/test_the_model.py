"""Which model a marker means."""

from __future__ import annotations

from tests.plugin.markers.gate_messages import problem
from tests.plugin.sessions import Sessions


def test_the_only_model_among_the_fixtures_is_meant(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def data():
            return batch()

        @pytest.fixture
        def criterion():
            return nn.MSELoss()

        @pytest.fixture
        def optimizer(model):
            return torch.optim.SGD(model.parameters(), lr=0.1)

        def step(model, data, criterion, optimizer):
            criterion(model(data), data).backward()
            optimizer.step()

        @pytest.mark.frozen_bn
        def test_holds(tmp_path, data, criterion, model, request):
            criterion(model(data), data).backward()

        @pytest.mark.frozen_bn
        def test_drifts(tmp_path, optimizer, data, criterion, model):
            step(model, data, criterion, optimizer)

        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("number", [1])
        def test_drifts_with_parameters(number, optimizer, data, criterion, model):
            step(model, data, criterion, optimizer)

        @pytest.mark.frozen_bn
        @pytest.mark.usefixtures("kept")
        def test_drifts_in_a_fixture_by_usefixtures(request):
            drift(request.getfixturevalue("kept"))

        @pytest.mark.frozen_bn
        @pytest.mark.parametrize("net", [Net()])
        def test_drifts_in_a_parameter(net):
            drift(net)
    """)
    session.tells_apart()
    assert "on Net (fixture 'model')" in session.texts["test_drifts"]


def test_a_loss_with_a_state_is_a_candidate(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def criterion():
            return nn.CrossEntropyLoss(weight=torch.ones(4))

        @pytest.mark.frozen_bn
        def test_step(model, criterion):
            hold(model)
    """)
    assert session.outcomes == {"test_step": "failed"}
    assert problem(session, "test_step") == (
        "the test has 2 models: 'model' (Net), 'criterion' (CrossEntropyLoss); "
        "say which one with model='model'"
    )


def test_of_several_models_one_must_be_named(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def student():
            return Net()

        @pytest.fixture
        def teacher():
            return nn.Sequential(Net())

        @pytest.mark.frozen_bn
        def test_unnamed(student, teacher):
            hold(student)

        @pytest.mark.frozen_bn(model="teacher")
        def test_holds(student, teacher):
            drift(student)
            hold(teacher)

        @pytest.mark.frozen_bn(model="student")
        def test_drifts(student, teacher):
            drift(student)
            hold(teacher)

        @pytest.mark.frozen_bn(model="student")
        @pytest.mark.frozen_bn("0.bn1", model="teacher")
        def test_drifts_in_one_of_two(student, teacher):
            hold(student)
            drift(teacher)
    """)
    assert session.outcomes.pop("test_unnamed") == "failed"
    assert problem(session, "test_unnamed") == (
        "the test has 2 models: 'student' (Net), 'teacher' (Sequential); "
        "say which one with model='student'"
    )
    session.texts.pop("test_unnamed")
    session.tells_apart()
    assert "on Net (fixture 'student')" in session.texts["test_drifts"]
    one_of_two = session.texts["test_drifts_in_one_of_two"]
    assert "frozen_bn('0.bn1') on Sequential (fixture 'teacher')" in one_of_two
    assert "fixture 'student'" not in one_of_two


def test_a_path_leads_into_objects_mappings_and_sequences(sessions: Sessions) -> None:
    session = sessions.run("""
        from dataclasses import dataclass
        from typing import NamedTuple

        class Parts(NamedTuple):
            net: nn.Module
            rate: float

        @dataclass
        class Trainer:
            model: nn.Module

            @property
            def core(self):
                return self.model.fc

        @pytest.fixture
        def trainer(model):
            return Trainer(Net())

        @pytest.fixture
        def setup():
            return {"net": Net(), "old": {"net": Net()}}

        @pytest.fixture
        def pair():
            return Net(), Parts(Net(), 0.1)

        @pytest.mark.frozen_bn(model="trainer.model")
        def test_holds_in_an_object(trainer):
            hold(trainer.model)

        @pytest.mark.frozen_bn(model="trainer.model")
        def test_drifts_in_an_object(trainer):
            drift(trainer.model)

        @pytest.mark.frozen(model="trainer.core")
        def test_drifts_in_a_property(trainer):
            nudge(trainer.model)
            trainer.core(batch())

        @pytest.mark.frozen_bn(model="trainer.model.bn1")
        def test_drifts_in_a_module_of_it(trainer):
            drift(trainer.model)

        @pytest.mark.frozen_bn(model="setup.net")
        def test_holds_in_a_mapping(setup):
            hold(setup["net"])
            drift(setup["old"]["net"])

        @pytest.mark.frozen_bn(model="setup.old.net")
        def test_drifts_in_a_mapping(setup):
            drift(setup["old"]["net"])

        @pytest.mark.frozen_bn(model="pair.0")
        def test_holds_in_a_sequence(pair):
            hold(pair[0])
            drift(pair[1].net)

        @pytest.mark.frozen_bn(model="pair.1.net")
        def test_drifts_in_a_sequence(pair):
            drift(pair[1].net)
    """)
    session.tells_apart()
    assert "on Net ('trainer.model')" in session.texts["test_drifts_in_an_object"]


def test_a_model_may_be_an_attribute_of_the_test(sessions: Sessions) -> None:
    session = sessions.run("""
        import unittest

        class TestPlain:
            net = Net()
            other = "no model"

            @pytest.mark.frozen_bn
            def test_drifts(self):
                drift(self.net)

            @pytest.mark.frozen_bn(model="self.net")
            def test_drifts_by_name_with_self(self):
                drift(self.net)

            @pytest.mark.frozen_bn(model="net")
            def test_holds_by_name(self, model):
                drift(model)
                hold(self.net)

        class TestSetUp:
            def setup_method(self):
                self.nets = [Net(), Net()]

            @pytest.mark.frozen_bn(model="self.nets.1")
            def test_drifts(self):
                drift(self.nets[1])

            @pytest.mark.frozen_bn(model="nets.1")
            def test_holds(self):
                drift(self.nets[0])
                hold(self.nets[1])

        class TestOfUnittest(unittest.TestCase):
            def setUp(self):
                self.student, self.teacher = Net(), Net()

            @pytest.mark.frozen_bn(model="self.teacher")
            def test_holds(self):
                drift(self.student)
                hold(self.teacher)

            @pytest.mark.frozen_bn(model="student")
            def test_drifts(self):
                drift(self.student)
    """)
    session.tells_apart()
    assert "on Net (self.net)" in session.texts["TestPlain::test_drifts"]


def test_a_part_of_another_model_is_no_second_candidate(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def backbone():
            return Net()

        @pytest.fixture
        def network(backbone):
            return nn.Sequential(backbone, nn.Linear(4, 2))

        @pytest.fixture
        def same(network):
            return network

        @pytest.mark.frozen_bn
        def test_holds(backbone, network):
            hold(network)

        @pytest.mark.frozen_bn
        def test_drifts(network, backbone, same):
            drift(network)

        @pytest.mark.frozen_bn(model="backbone")
        def test_drifts_by_name(network, backbone):
            drift(network)
    """)
    session.tells_apart()
    assert "on Sequential (fixture 'network')" in session.texts["test_drifts"]
    assert "0.bn1.running_mean" in session.texts["test_drifts"]
    assert "on Net (fixture 'backbone')" in session.texts["test_drifts_by_name"]


TRAINER = """
import copy
import unittest

class Trainer:
    def __init__(self):
        self.model = Net()

@pytest.fixture
def trainer():
    return Trainer()
"""


def test_a_model_that_was_exchanged_is_a_gate_error(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.xfail
        @pytest.mark.frozen_bn(model="trainer.model")
        def test_a_copy(trainer):
            hold(trainer.model)
            trainer.model = copy.deepcopy(trainer.model)
            drift(trainer.model)

        @pytest.mark.frozen(model="setup.model")
        def test_in_a_mapping(setup):
            hold(setup["model"])
            setup["model"] = Net()

        @pytest.fixture
        def setup():
            return {"model": Net()}

        class TestOfUnittest(unittest.TestCase):
            def setUp(self):
                self.net = Net()

            @pytest.mark.frozen_bn
            def test_an_attribute(self):
                hold(self.net)
                self.net = Net()

        @pytest.mark.in_sync("trainer.model", "other")
        def test_one_of_two(trainer, other):
            trainer.model = copy.deepcopy(other)

        @pytest.fixture
        def other():
            return Net()
    """,
        before=TRAINER,
    )
    assert set(session.outcomes.values()) == {"failed"}
    assert len(session.outcomes) == 4
    for name in session.outcomes:
        assert session.first_line(name).startswith("cannot judge: ")
    said = session.says("test_a_copy")
    assert "model='trainer.model' led to one Net when the test began, and leads to another" in said
    assert "(asked for by @pytest.mark.frozen_bn(model='trainer.model'))" in said


def test_a_violation_beside_it_is_told_too(sessions: Sessions) -> None:
    session = sessions.run(
        """
        @pytest.mark.frozen_bn(model="trainer.model")
        def test_it(trainer):
            drift(trainer.model)
            trainer.model = Net()
    """,
        before=TRAINER,
    )
    assert session.outcomes == {"test_it": "failed"}
    assert session.first_line("test_it").startswith("cannot judge: model='trainer.model' led")
    assert "2 of 2 frozen BN layers changed" in session.texts["test_it"]


def test_a_wrapper_a_part_or_nothing_at_the_end_is_no_other_model(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def wrapped(model):
            return nn.Sequential(model)

        def dropped(model):
            return None

        def same(model):
            return model.train().eval()

        def part(model):
            return model.bn1

        @pytest.mark.frozen_bn(model="trainer.model")
        @pytest.mark.parametrize("end", [wrapped, dropped, same, part])
        def test_holds(trainer, end):
            hold(trainer.model)
            trainer.model = end(trainer.model)

        @pytest.mark.frozen_bn(model="trainer.model")
        def test_drifts(trainer):
            trainer.model = wrapped(trainer.model)
            drift(trainer.model)

        @pytest.mark.frozen_bn(model="trainer.model")
        def test_own(trainer):
            trainer.model = Net()
            raise ValueError("own")
    """,
        before=TRAINER,
    )
    own = session.outcomes.pop("test_own")
    session.texts.pop("test_own")
    assert own == "failed"
    session.tells_apart()
