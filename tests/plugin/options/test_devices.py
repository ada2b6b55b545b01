"""The fixture `bn_device` and the option `--bn-device`."""

from __future__ import annotations

import pytest
import torch

from pytest_bninvariants import devices as known_devices
from tests.plugin.sessions import Sessions

TEST = """
    def test_it(bn_device):
        assert isinstance(bn_device, torch.device)
        print("runs on", bn_device)
"""

NONSENSE = ["tpu", "cuda:x", "cuda:-1", "cuda:", "CPU", "cpu:0", "meta", "gpu", ""]


def absent() -> list[str]:
    there = {
        "cuda": torch.cuda.is_available(),
        "cuda:7": torch.cuda.device_count() > 7,
        "mps": torch.backends.mps.is_available(),
        "mps:1": False,
        "hpu": hasattr(torch, "hpu"),
        "privateuseone:1": False,
        "xpu": torch.xpu.is_available(),
    }
    return [name for name, is_there in there.items() if not is_there]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that there are two CUDA devices and an MPS one."""

    def why_absent(kind: str, index: int) -> str | None:
        return None if (kind, index) in {("cuda", 0), ("cuda", 1), ("mps", 0)} else "not here"

    monkeypatch.setattr(known_devices, "why_absent", why_absent)


def names_after(sessions: Sessions, *args: str) -> list[str]:
    session = sessions.run(TEST, *args)
    assert set(session.outcomes.values()) == {"passed"}
    return list(session.outcomes)


def test_the_default_is_cpu_and_the_tests_name_says_so(sessions: Sessions) -> None:
    session = sessions.run(TEST, "-s")
    assert session.outcomes == {"test_it[cpu]": "passed"}
    assert "runs on cpu" in session.output


def test_a_test_runs_on_each_device_once_in_the_order_given(
    sessions: Sessions, pretended: None
) -> None:
    args = ["--bn-device=cuda:1", "--bn-device", "cpu", "--bn-device=cuda:1", "--bn-device=cuda"]
    assert names_after(sessions, *args) == ["test_it[cuda:1]", "test_it[cpu]", "test_it[cuda]"]
    assert names_after(sessions, "--bn-device=cpu", "--bn-device=cpu") == ["test_it[cpu]"]


def test_auto_is_the_best_and_all_is_each_kind(sessions: Sessions, pretended: None) -> None:
    assert names_after(sessions, "--bn-device=auto") == ["test_it[cuda]"]
    everything = ["test_it[cpu]", "test_it[mps]", "test_it[cuda]"]
    assert names_after(sessions, "--bn-device=all") == everything
    assert names_after(sessions, "--bn-device=all", "--bn-device=auto") == everything


@pytest.mark.skipif(
    not {"cuda", "mps", "xpu", "hpu"}.issubset(absent()), reason="has an accelerator"
)
def test_auto_and_all_are_cpu_where_there_is_nothing_else(sessions: Sessions) -> None:
    assert names_after(sessions, "--bn-device=auto") == ["test_it[cpu]"]
    assert names_after(sessions, "--bn-device=all") == ["test_it[cpu]"]


def test_the_ini_file_gives_devices_and_the_command_line_wins(
    sessions: Sessions, pretended: None
) -> None:
    sessions.pytester.makeini("[pytest]\nbn_device = cuda cpu")
    assert names_after(sessions) == ["test_it[cuda]", "test_it[cpu]"]
    assert names_after(sessions, "--bn-device=cuda:1") == ["test_it[cuda:1]"]
    assert names_after(sessions, "-obn_device=mps") == ["test_it[mps]"]


@pytest.mark.parametrize("way", ["option", "ini", "workers"])
@pytest.mark.parametrize("device", absent())
def test_a_device_that_is_not_there_is_a_usage_error_that_says_why(
    sessions: Sessions, device: str, way: str
) -> None:
    said = refused(sessions, device, way)
    assert f"{'bn_device' if way == 'ini' else '--bn-device'}={device}: " in said
    reasons = ("built without", "finds no", "of this kind", "needs macOS", "has no module torch.")
    assert any(reason in said for reason in reasons), said


@pytest.mark.parametrize("way", ["option", "workers"])
@pytest.mark.parametrize("device", NONSENSE)
def test_what_is_no_device_is_a_usage_error_that_says_what_is_accepted(
    sessions: Sessions, device: str, way: str
) -> None:
    said = refused(sessions, device, way)
    assert said == (
        f"ERROR: --bn-device={device}: there is no such device; accepted: {known_devices.DEVICES}"
    )


def refused(sessions: Sessions, device: str, way: str) -> str:
    """Return what pytest says as it refuses a device."""
    sessions.pytester.makepyfile(TEST)
    args = {
        "option": ["--bn-device", "cpu", "--bn-device", device],
        "ini": ["-o", f"bn_device=cpu {device}"],
        "workers": ["-n2", "--bn-device", device],
    }[way]
    result = sessions.bare(*args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    (said,) = [line for line in result.errlines if line.startswith("ERROR")]
    return said


def test_an_index_above_the_last_says_how_many_there_are(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = refused(sessions, "cuda:2", "option")
    assert said == "ERROR: --bn-device=cuda:2: there are 2 devices of this kind, cuda:0 to cuda:1"


def test_devices_are_not_asked_for_where_only_cpu_is_wanted(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(kind: str, index: int) -> str | None:
        raise RuntimeError("asked")

    monkeypatch.setattr(known_devices, "why_absent", never)
    assert names_after(sessions, "--bn-device=cpu") == ["test_it[cpu]"]


def test_fixtures_and_classes_may_ask_for_the_device(sessions: Sessions, pretended: None) -> None:
    session = sessions.run(
        """
        @pytest.fixture(scope="session")
        def where(bn_device):
            return str(bn_device)

        def test_by_a_fixture(where):
            assert where in ("cpu", "cuda")

        class TestStep:
            def test_method(self, bn_device):
                pass

        @pytest.mark.parametrize("number", [1, 2])
        def test_parametrized(number, bn_device):
            pass

        @pytest.mark.usefixtures("bn_device")
        def test_by_mark():
            pass

        def test_late(request):
            assert request.getfixturevalue("bn_device") == torch.device("cpu")

        def test_without():
            pass
    """,
        "--bn-device=cpu",
        "--bn-device=cuda",
    )
    assert set(session.outcomes.values()) == {"passed"}
    assert sorted(session.outcomes) == [
        "TestStep::test_method[cpu]",
        "TestStep::test_method[cuda]",
        "test_by_a_fixture[cpu]",
        "test_by_a_fixture[cuda]",
        "test_by_mark[cpu]",
        "test_by_mark[cuda]",
        "test_late",
        "test_parametrized[cpu-1]",
        "test_parametrized[cpu-2]",
        "test_parametrized[cuda-1]",
        "test_parametrized[cuda-2]",
        "test_without",
    ]


OWN_PARAMETERS = {
    "directly": """
        @pytest.mark.parametrize("bn_device", [torch.device("meta")], ids=str)
        def test_it(bn_device):
            assert bn_device.type == "meta"
    """,
    "indirectly": """
        @pytest.mark.parametrize("bn_device", ["meta"], indirect=True)
        def test_it(bn_device):
            assert bn_device.type == "meta"
    """,
    "among others": """
        @pytest.mark.parametrize("number, bn_device", [(1, "meta")])
        def test_it(number, bn_device):
            assert bn_device == "meta"
    """,
    "as a list of names": """
        @pytest.mark.parametrize(["number", "bn_device"], [(1, "meta")])
        def test_it(number, bn_device):
            assert bn_device == "meta"
    """,
    "by keyword": """
        @pytest.mark.parametrize(argnames="bn_device", argvalues=["meta"])
        def test_it(bn_device):
            assert bn_device == "meta"
    """,
    "on a class": """
        @pytest.mark.parametrize("bn_device", ["meta"])
        class TestStep:
            def test_it(self, bn_device):
                assert bn_device == "meta"
    """,
    "on the module": """
        pytestmark = pytest.mark.parametrize("bn_device", ["meta"])

        def test_it(bn_device):
            assert bn_device == "meta"
    """,
    "by a hook in the module": """
        def pytest_generate_tests(metafunc):
            metafunc.parametrize("bn_device", ["meta"])

        def test_it(bn_device):
            assert bn_device == "meta"
    """,
    "by a fixture of that name": """
        @pytest.fixture(params=["meta"])
        def bn_device(request):
            return request.param

        def test_it(bn_device):
            assert bn_device == "meta"
    """,
}


@pytest.mark.parametrize("way", OWN_PARAMETERS)
def test_a_tests_own_parameters_win(sessions: Sessions, way: str) -> None:
    session = sessions.run(OWN_PARAMETERS[way], "--bn-device=cpu", "--bn-device=auto")
    assert list(session.outcomes.values()) == ["passed"]
    assert "meta" in next(iter(session.outcomes))


def test_a_users_own_fixture_wins_and_may_ask_for_ours(sessions: Sessions) -> None:
    session = sessions.run("""
        class TestOwn:
            @pytest.fixture
            def bn_device(self):
                return "mine"

            def test_own(self, bn_device):
                assert bn_device == "mine"

        class TestOnTop:
            @pytest.fixture
            def bn_device(self, bn_device):
                return f"my {bn_device}"

            def test_on_top(self, bn_device):
                assert bn_device == "my cpu"
    """)
    assert session.outcomes == {
        "TestOwn::test_own": "passed",
        "TestOnTop::test_on_top": "passed",
    }


def test_a_model_on_the_device_is_guarded(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def placed(model, bn_device):
            return model.to(bn_device)

        @pytest.mark.frozen_bn
        def test_holds(placed):
            hold(placed)

        @pytest.mark.frozen_bn
        def test_drifts(placed):
            drift(placed)
    """)
    session.tells_apart()
    assert list(session.outcomes) == ["test_holds[cpu]", "test_drifts[cpu]"]
