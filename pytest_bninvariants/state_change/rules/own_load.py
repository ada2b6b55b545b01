"""The rule for state that was to be put back from a state_dict that holds the state itself."""

from __future__ import annotations

from pytest_bninvariants.diagnosis.rule import Rule
from pytest_bninvariants.diagnosis.wording import name_list, one_or_many
from pytest_bninvariants.state_change.evidence import ChangeEvidence


def _explain(evidence: list[ChangeEvidence]) -> tuple[str, str]:
    names = [each.change.name for each in evidence]
    itself = one_or_many(names, "was loaded from itself", "were loaded from themselves")
    return (
        f"{name_list(names)} {itself}, which restores nothing: state_dict() returns the model's "
        "own tensors, and they change with the model",
        "keep a copy of the state: copy.deepcopy(model.state_dict())",
    )


SHARED_MEMORY: Rule[ChangeEvidence] = Rule(
    cause="shared-memory",
    applies=lambda evidence: evidence.loaded_itself_at is not None,
    explain=_explain,
    place=lambda evidence: evidence.loaded_itself_at,
    did="loaded by",
)
