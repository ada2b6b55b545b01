"""`--bn-audit` and optimizers that fixtures of a wider scope made in the setup of another test."""

from __future__ import annotations

from tests.plugin.sessions import Sessions

MODULE_FIXTURES = """
def step(model, optimizer):
    optimizer.zero_grad()
    model.train()(batch()).square().mean().backward()
    optimizer.step()

@pytest.fixture(scope="module")
def net():
    return Net()

@pytest.fixture(scope="module")
def first(net):
    return torch.optim.SGD(net.bn1.parameters(), lr=0.1)
"""

HOLD_THE_REST = """
@pytest.fixture(scope="module", autouse=True)
def rest(net):
    return torch.optim.SGD([*net.fc.parameters(), *net.bn2.parameters()], lr=0.1)
"""

HOLD_NO_MORE = """
@pytest.fixture(scope="module", autouse=True)
def rest(net):
    torch.optim.SGD([*net.fc.parameters(), *net.bn2.parameters()], lr=0.1)
"""

SUITE = """
def test_before(net, first):
    drift(net)

def test_trained(net, first):
    step(net, first)

def test_teacher(net, first):
    student = Net()
    with torch.no_grad():
        net.train()(batch())
    step(student, torch.optim.SGD(student.parameters(), lr=0.1))
"""
ARGS = ("--bn-audit=fail", "--bn-audit-rules=all")


def test_what_their_optimizers_hold_is_held(sessions: Sessions) -> None:
    session = sessions.run(SUITE, *ARGS, before=MODULE_FIXTURES + HOLD_THE_REST)
    assert set(session.outcomes.values()) == {"passed"}


def test_what_no_living_optimizer_holds_is_told(sessions: Sessions) -> None:
    session = sessions.run(SUITE, *ARGS, before=MODULE_FIXTURES + HOLD_NO_MORE)
    assert session.outcomes == {
        "test_before": "passed",
        "test_trained": "failed",
        "test_teacher": "failed",
    }
    assert session.first_line("test_trained").startswith("2 of 2 layers in no optimizer: fc, bn2")
    assert session.first_line("test_teacher").startswith("1 of 1 frozen BN layer changed: bn2")
