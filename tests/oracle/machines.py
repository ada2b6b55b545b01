"""The machine: draws a model, what people do with it, and guards; then asks who is right."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import tests.oracle.actions  # noqa: F401
from pytest_bninvariants import (
    Guard,
    InvariantBroken,
    bn_updates,
    frozen,
    frozen_bn,
    guard_registry,
    in_sync,
    trains,
)
from pytest_bninvariants.errors import GateError
from tests.engine import everything_wrapped
from tests.oracle.actions.averages import DECAY
from tests.oracle.actions.registry import FAMILIES, find
from tests.oracle.comparison import COMPARISONS, Disagreement, Span, compare_causes
from tests.oracle.models import ModelSpec, model_specs
from tests.oracle.scopes import Ask, asks
from tests.oracle.timeline import Stretch, Timeline, read
from tests.oracle.world import World

SEEDS = st.integers(0, 2**16)
GUARDS: dict[str, Callable[..., Guard]] = {
    "frozen_bn": frozen_bn,
    "frozen": frozen,
    "bn_updates": bn_updates,
    "trains": trains,
    "in_sync": in_sync,
}
FROZEN_OPTIONS = ({"parameters": False}, {"buffers": False}, {"allow_batch_stats": True})
UPDATE_OPTIONS = (
    {"times": 2},
    {"times": 3},
    {"times": "forwards"},
    {"per": "optimizer_step"},
    {"times": 2, "per": "optimizer_step"},
)
USUAL = (
    "train_one_batch",
    "train_one_batch",
    "step_with_a_closure",
    "forward_and_backward",
    "validate",
    "step",
    "forward",
    "train_the_model",
    "checkpointed_forward_and_backward",
    "load_its_own",
)
COUNTS: Counter[str] = Counter()
"""How many of what the machines of this process did."""


class Interruption(Exception):
    """Raised inside a guarded block, as a user's own error."""


def acting(family: str) -> Any:
    """Return a rule that draws one of a family's actions."""

    @rule(name=st.sampled_from([*FAMILIES[family]]), seed=SEEDS)
    def act(self: OracleMachine, name: str, seed: int) -> None:
        self.do(name, seed)

    return act


class OracleMachine(RuleBasedStateMachine):
    """Two worlds in which the same happens: in one under guards, in the other bare."""

    judges_causes = False

    @initialize(spec=model_specs())
    def build(self, spec: ModelSpec) -> None:
        self.wrapped = everything_wrapped()
        self.guarded, bare = World.build(spec), World.build(spec)
        _seed(spec.seed)
        self.timeline = Timeline(bare)
        self.done: list[tuple[str, int, object]] = []
        self.open: list[Span] = []
        self.closed: list[Span] = []

    flip_modes = acting("modes")
    set_layers = acting("settings")
    run_forward = acting("forwards")
    run_backward = acting("backwards")
    train = acting("training")
    write = acting("writes")
    load = acting("loads")
    convert = acting("conversions")
    run_translated = precondition(lambda self: len(self.done) % 8 == 7)(acting("rare"))

    @precondition(lambda self: len(self.open) < 3)
    @rule(kind=st.sampled_from(["frozen", "frozen_bn"]), ask=asks(*FROZEN_OPTIONS))
    def freeze(self, kind: str, ask: Ask) -> None:
        self.start(kind, ask)

    @precondition(lambda self: len(self.open) < 3)
    @rule(ask=asks(*UPDATE_OPTIONS))
    def count_updates(self, ask: Ask) -> None:
        self.start("bn_updates", ask)

    @precondition(lambda self: len(self.open) < 3)
    @rule(ask=asks({"buffers": False}))
    def expect_training(self, ask: Ask) -> None:
        self.start("trains", ask)

    @precondition(lambda self: len(self.open) < 3)
    @rule(
        kind=st.sampled_from([kind for kind in GUARDS if kind != "in_sync"]),
        ask=asks(),
        counting=st.sampled_from([{}, *UPDATE_OPTIONS]),
        seed=SEEDS,
        mode=st.sampled_from(["train_the_model", "eval_the_model", "eval_all_norms"]),
        step=st.lists(st.sampled_from(USUAL), min_size=1, max_size=3),
    )
    def guard_a_step(
        self,
        kind: str,
        ask: Ask,
        counting: dict[str, object],
        seed: int,
        mode: str,
        step: list[str],
    ) -> None:
        """Do what people do: set a mode, and guard a step right after it."""
        self.do(mode, seed)
        ask = replace(ask, options=counting) if kind == "bn_updates" else ask
        before = len(self.open)
        self.start(kind, ask)
        for number, name in enumerate(step):
            self.do(name, seed + number)
        if len(self.open) > before:
            self.end(self.open.pop(), interrupted=False)
        if not self.open:
            self.settle()

    @precondition(lambda self: len(self.open) < 3)
    @rule(
        seed=SEEDS,
        step=st.lists(st.sampled_from(USUAL), min_size=1, max_size=2),
        update=st.sampled_from([each for each in FAMILIES["averages"] if each != "make_a_teacher"]),
    )
    def guard_an_average(self, seed: int, step: list[str], update: str) -> None:
        """Train, and update the model's average well or badly."""
        self.do("make_a_teacher", seed)
        before = len(self.open)
        self.start("in_sync", Ask(options={"decay": DECAY}))
        for number, name in enumerate([*step, update]):
            self.do(name, seed + number)
        if len(self.open) > before:
            self.end(self.open.pop(), interrupted=False)
        if not self.open:
            self.settle()

    @precondition(lambda self: self.open and len(self.done) > self.open[-1].start)
    @rule(which=st.integers(0, 2), interrupted=st.sampled_from([False, False, False, True]))
    def leave(self, which: int, interrupted: bool) -> None:
        self.end(self.open.pop(which % len(self.open)), interrupted=interrupted)
        if not self.open:
            self.settle()

    def teardown(self) -> None:
        if not hasattr(self, "open"):
            return
        while self.open:
            self.end(self.open.pop(), interrupted=False)
        self.settle()

    def do(self, name: str, seed: int) -> None:
        """Do something in the guarded world; the bare one follows when no guard is there."""
        COUNTS["actions"] += 1
        self.done.append((name, seed, self.guarded.do(find(name), seed)))

    def start(self, kind: str, ask: Ask) -> None:
        """Enter a guard."""
        COUNTS["guards"] += 1
        with _quiet():
            exclude = {"exclude": ask.exclude} if ask.exclude else {}
            models = [self.guarded.model]
            models += [self.guarded.teacher] if kind == "in_sync" else []
            guard = GUARDS[kind](*models, *ask.names, **ask.options, **exclude)
            span = Span(kind, ask, guard, len(self.done))
            try:
                guard.__enter__()
            except GateError as error:
                span.refused, span.end = str(error), span.start
                self.closed.append(span)
                if not self.open:
                    self.settle()
                return
        self.open.append(span)

    def end(self, span: Span, *, interrupted: bool) -> None:
        """Leave a guard, perhaps by an exception."""
        span.end, span.interrupted = len(self.done), interrupted
        error = Interruption("in the block") if interrupted else None
        with _quiet():
            try:
                if span.guard.__exit__(type(error) if error else None, error, None):
                    raise Disagreement(f"{span} swallowed the block's own exception")
                span.verdict = span.guard.verdict
                if span.verdict is not None and not span.verdict.holds and not interrupted:
                    raise Disagreement(f"{span} is broken and raised nothing")
            except InvariantBroken as broken:
                span.verdict = broken.verdict
                if interrupted:
                    raise Disagreement(f"{span} raised over the block's own exception") from broken
            except GateError as refusal:
                span.refused = str(refusal)
        self.closed.append(span)

    def settle(self) -> None:
        """Let the bare world follow, and compare what guards said with what happened."""
        if guard_registry.findings is not None:
            guard_registry.findings.clear()
        if (left := everything_wrapped()) != self.wrapped:
            raise Disagreement(f"left patched: {differences(self.wrapped, left)}")
        for name, seed, outcome in self.done[len(self.timeline.deeds) :]:
            deed = self.timeline.run(name, seed)
            if deed.outcome != outcome:
                raise Disagreement(f"{name} came to {outcome} under guards, else to {deed.outcome}")
        now, then = read(self.guarded), self.timeline.readings[-1]
        if now != then:
            raise Disagreement(f"not as without guards: {differences(vars(then), vars(now))}")
        for span in self.closed:
            self.judge(span)
        self.closed.clear()

    def judge(self, span: Span) -> None:
        """Compare what a guard said with the slow judgement."""
        COUNTS[f"verdicts of {span.kind}"] += 1
        stretch = Stretch.of(self.timeline, span.start, span.end)
        COMPARISONS[span.kind](span, stretch)
        if self.judges_causes:
            compare_causes(span, stretch)
        state = "held" if span.verdict is not None and span.verdict.holds else "broken"
        COUNTS[f"{span.kind} refused" if span.refused else f"{span.kind} {state}"] += 1


class CauseMachine(OracleMachine):
    """Judges causes and their places, too."""

    judges_causes = True


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what differs, two levels deep."""
    found = {}
    for key in one.keys() | other.keys():
        mine, theirs = one.get(key), other.get(key)
        if mine == theirs:
            continue
        nested = isinstance(mine, dict) and isinstance(theirs, dict)
        found[key] = differences(mine, theirs) if nested else (mine, theirs)
    return found


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Hear no warnings."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
