from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pytest_bninvariants.snapshot import buckets
from pytest_bninvariants.snapshot.bucket_readings import compare_with_buckets
from pytest_bninvariants.snapshot.buckets import Bucket, fill_buckets


@pytest.fixture(autouse=True)
def no_arrangement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_latest", None)


@pytest.fixture
def arranged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors were arranged, each time that any were."""
    times: list[int] = []
    real = buckets._arrange

    def counting(tensors: dict[str, Tensor]) -> object:
        times.append(len(tensors))
        return real(tensors)

    monkeypatch.setattr(buckets, "_arrange", counting)
    return times


def some() -> dict[str, Tensor]:
    large = {"large": torch.randn(5000)}
    return {**{f"small{i}": torch.randn(3) for i in range(4)}, "0-d": torch.tensor(1), **large}


def assert_kept(tensors: dict[str, Tensor]) -> None:
    kept = contents(tensors)
    assert kept.keys() == tensors.keys()
    for key, flat in kept.items():
        assert torch.equal(flat.view(tensors[key].dtype), tensors[key].flatten())


def contents(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pack tensors; return the bytes of each."""
    found = {}
    for bucket in fill_buckets(tensors):
        for number, key in enumerate(bucket.keys):
            flat = bucket.bytes_of(number)
            assert flat is not None
            found[key] = flat
    return found


def test_tensors_that_stay_where_they_are_are_arranged_once(arranged: list[int]) -> None:
    tensors = some()
    for _ in range(3):
        assert_kept(tensors)
        for tensor in tensors.values():
            tensor.add_(1)
    assert arranged == [6]


def test_snapshots_of_one_arrangement_do_not_share_their_bytes() -> None:
    tensors = some()
    kept = contents(tensors)["small1"]
    before = kept.clone()
    tensors["small1"].add_(1)
    assert_kept(tensors)
    assert torch.equal(kept, before)


def _moved(tensors: dict[str, Tensor]) -> None:
    tensors["small1"].data = torch.randn(3)


def _of_another_shape(tensors: dict[str, Tensor]) -> None:
    tensors["large"].data = tensors["large"].data.view(50, 100)


def _of_another_dtype(tensors: dict[str, Tensor]) -> None:
    tensors["large"] = tensors["large"].view(torch.int32)


def _a_parameter_now(tensors: dict[str, Tensor]) -> None:
    tensors["small2"] = nn.Parameter(tensors["small2"])


def _under_another_key(tensors: dict[str, Tensor]) -> None:
    tensors["renamed"] = tensors.pop("large")


def _in_another_order(tensors: dict[str, Tensor]) -> None:
    tensors["small0"] = tensors.pop("small0")


def _fewer(tensors: dict[str, Tensor]) -> None:
    del tensors["small3"]


@pytest.mark.parametrize(
    "change",
    [
        _moved,
        _of_another_shape,
        _of_another_dtype,
        _a_parameter_now,
        _under_another_key,
        _in_another_order,
        _fewer,
    ],
)
def test_what_has_changed_is_arranged_anew(
    arranged: list[int], change: Callable[[dict[str, Tensor]], None]
) -> None:
    tensors = some()
    assert_kept(tensors)
    change(tensors)
    assert_kept(tensors)
    assert len(arranged) == 2


def test_what_can_no_longer_be_copied_with_others_is_left_out() -> None:
    tensors = some()
    assert_kept(tensors)
    tensors["small1"] = tensors["small1"].to_sparse()
    assert contents(tensors).keys() == tensors.keys() - {"small1"}
    tensors["small2"] = torch.empty(3, device="meta")
    assert contents(tensors).keys() == tensors.keys() - {"small1", "small2"}


def test_memory_that_was_freed_is_left_out() -> None:
    tensors = some()
    assert_kept(tensors)
    tensors["large"].untyped_storage().resize_(0)
    assert "large" not in contents(tensors)


def test_an_arrangement_keeps_no_tensor_alive() -> None:
    tensors = some()
    assert_kept(tensors)
    left = [weakref.ref(tensor) for tensor in tensors.values()]
    tensors.clear()
    gc.collect()
    assert [each() for each in left] == [None] * 6


def test_where_tensors_start_in_a_bucket_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    sizes = Bucket._sizes

    def counting(bucket: Bucket) -> list[int]:
        read.append(bucket)
        return sizes(bucket)

    monkeypatch.setattr(Bucket, "_sizes", counting)
    tensors = {f"t{i}": torch.full((i % 3,), float(i)) for i in range(50)}
    assert_kept(tensors)
    assert len(read) == len(set(map(id, read)))


def test_tensors_are_joined_with_those_of_their_own_number_of_dimensions() -> None:
    shapes = [(), (), (3,), (2, 2), (1, 2, 2), (2, 1, 2, 1)]
    tensors = {str(number): torch.randn(shape) for number, shape in enumerate(shapes)}
    assert_kept(tensors)
    assert [bucket.keys for bucket in fill_buckets(tensors)] == [["0", "1"], ["2"], ["3", "4", "5"]]


def test_a_tensor_of_16_kib_is_kept_with_others_and_a_larger_one_by_itself() -> None:
    tensors = {"small": torch.ones(2**12), "too": torch.ones(2), "large": torch.ones(2**12 + 1)}
    large, small = fill_buckets(tensors)
    assert (large.keys, large.is_large) == (["large"], True)
    assert (small.keys, small.is_large) == (["small", "too"], False)
    (alone,) = fill_buckets({"small": torch.ones(2**12)})
    assert not alone.is_large


def test_a_copy_within_a_step_leaves_the_plan_for_the_next_guard_alone() -> None:
    plan = some()
    fill_buckets(plan)
    latest = buckets._latest
    assert latest is not None
    fill_buckets(some(), within_step=True)
    assert buckets._latest is latest
    fill_buckets(plan, within_step=True)
    assert buckets._latest is latest


def test_a_bucket_is_full_at_32768_values() -> None:
    tensors = {str(number): torch.zeros(2**12) for number in range(9)}
    buckets = fill_buckets(tensors, within_step=True)
    assert [bucket.keys for bucket in buckets] == [[*"01234567"], ["8"]]
    assert [bucket.total for bucket in buckets] == [2**17, 2**14]


def test_buckets_compare_with_what_tensors_hold_and_where_they_lie_now() -> None:
    def compare(**others: torch.Tensor) -> tuple[set[str], bool]:
        return tuple(compare_with_buckets(buckets, tensors | others))  # type: ignore[return-value]

    tensors = {"a": torch.zeros(3), "b": torch.ones(2), "large": torch.zeros(2**13)}
    buckets = fill_buckets(tensors, within_step=True)
    assert compare() == ({"a", "b", "large"}, True)
    assert compare(a=torch.zeros(3)) == ({"a", "b", "large"}, False)
    assert compare(a=torch.ones(3)) == ({"b", "large"}, False)
    assert compare(a=torch.zeros(3, dtype=torch.float64)) == ({"large"}, False)
    assert compare(large=torch.ones(2**13)) == ({"a", "b"}, False)
    tensors["b"].add_(1)
    assert compare() == ({"a", "large"}, False)
    del tensors["large"]
    assert compare() == ({"a"}, False)


def test_the_bytes_of_each_tensor_are_where_its_key_is() -> None:
    tensors = {"a": torch.zeros(3), "b": torch.ones(2), "c": torch.full((4,), 2.0)}
    (bucket,) = fill_buckets(tensors, within_step=True)
    for number, tensor in enumerate(tensors.values()):
        piece = bucket.bytes_of(number)
        assert piece is not None
        assert torch.equal(piece.view(torch.float32), tensor)
    assert bucket.is_small
    assert not bucket.is_large
