"""Which model a marker means."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Session, Sessions


def problem(session: Session, name: str) -> str:
    """Return what a gate says, without which marker it is about."""
    said, asked, marker = session.says(name).partition(" (asked for by @pytest.mark.")
    assert asked
    assert marker.startswith("frozen")
    return said


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


WRAPPERS = {
    "DataParallel": "nn.DataParallel(net)",
    "compiled": 'torch.compile(net, backend="eager")',
    "DistributedDataParallel": "nn.parallel.DistributedDataParallel(net)",
}


@pytest.mark.usefixtures("_compiler_is_imported")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_found_and_its_modules_keep_their_names(
    sessions: Sessions, wrapper: str
) -> None:
    session = sessions.run(f"""
        import torch.distributed

        @pytest.fixture(autouse=True)
        def _group(tmp_path):
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{{tmp_path}}/store", rank=0, world_size=1
            )
            yield
            torch.distributed.destroy_process_group()

        @pytest.fixture
        def net():
            return Net()

        @pytest.fixture
        def wrapped(net):
            return {WRAPPERS[wrapper]}

        @pytest.mark.frozen_bn
        def test_holds(wrapped, net):
            hold(wrapped)

        @pytest.mark.frozen_bn
        def test_drifts(net, wrapped):
            drift(wrapped)

        @pytest.mark.frozen_bn("bn1")
        def test_drifts_in_a_module_by_its_bare_name(wrapped):
            drift(wrapped)

        @pytest.mark.frozen_bn("bn1")
        def test_holds_in_a_module_by_its_bare_name(wrapped):
            wrapped.eval()
            net = next(wrapped.children())
            net.bn2.train()
            wrapped(batch())

        @pytest.mark.frozen_bn(model="net")
        def test_drifts_in_the_module_inside(wrapped, net):
            drift(wrapped)
    """)
    session.tells_apart()
    assert "(fixture 'wrapped')" in session.texts["test_drifts"]


@pytest.mark.usefixtures("_compiler_is_imported")
def test_a_module_that_is_compiled_in_place_is_found(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def compiled():
            net = Net()
            net.compile(backend="eager")
            return net

        @pytest.mark.frozen_bn
        def test_holds(compiled):
            hold(compiled)

        @pytest.mark.frozen_bn
        def test_drifts(compiled):
            drift(compiled)
    """)
    session.tells_apart()


def test_a_lightning_module_is_found(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import lightning
        from torch.utils.data import DataLoader

        class Module(lightning.LightningModule):
            def __init__(self, freeze):
                super().__init__()
                self.net = Net()
                self.head = nn.Linear(4, 1)
                self.net.requires_grad_(False)
                self.freeze = freeze

            def on_train_epoch_start(self):
                if self.freeze:
                    self.net.eval()
                else:
                    self.net.train()

            def training_step(self, x, _):
                return self.head(self.net(x)).pow(2).mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.head.parameters(), lr=0.1)

        def fit(module):
            trainer = lightning.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )
            trainer.fit(module, DataLoader(batch(16), batch_size=8))

        @pytest.fixture
        def module(request):
            return Module(freeze="holds" in request.node.name)

        @pytest.mark.frozen_bn("net")
        @pytest.mark.frozen("net")
        def test_holds(module):
            fit(module)

        @pytest.mark.frozen_bn("net")
        def test_drifts(module):
            fit(module)
    """,
        alone=True,
    )
    session.tells_apart()
    assert "on Module (fixture 'module')" in session.texts["test_drifts"]


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
        "let it take the model as a fixture, or use the fixture `frozen_bn` or `frozen` around "
        "the train step: with frozen_bn(model): ..."
    )
    said = {name: problem(session, name) for name in session.texts}
    assert said["test_no_fixtures"] == f"the test has no model: its fixtures are none; {hint}"
    assert said["test_other_fixtures"].startswith("the test has no model: its fixtures are")
    assert "number (int)" in said["test_other_fixtures"]
    assert said["test_other_fixtures"].endswith(hint)
    assert said["test_in_an_object"].endswith("; say model='trainer.model'")
    assert said["test_in_a_mapping"].endswith("; say model='setup.net'")
    assert said["test_in_a_tuple"].endswith("; say model='pair.1' or model='trainer.model'")
    assert said["test_a_mapping_by_name"].startswith("model='setup' is no torch.nn.Module but {")
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
    assert said["test_no_module"].startswith("model='trainer' is no torch.nn.Module but <")
    assert said["test_no_module"].endswith("(Trainer); say model='trainer.model'")
    assert said["test_empty"].startswith("model='': ")
