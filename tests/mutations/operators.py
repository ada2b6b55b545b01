"""What a fault can be: operators of cosmic-ray, and a few that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Keyword

# One or two replacements for each operator. cosmic-ray has all pairs; most of them raise a
# TypeError at once, and would only make the share of killed faults look better than it is.
BINARY = {
    "Add": ["Sub"],
    "Sub": ["Add"],
    "Mul": ["Div"],
    "Div": ["Mul"],
    "FloorDiv": ["Mul"],
    "Mod": ["Mul"],
    "Pow": ["Mul"],
    "BitOr": ["BitAnd"],
    "BitAnd": ["BitOr"],
}
COMPARISON = {
    "Eq": ["NotEq"],
    "NotEq": ["Eq"],
    "Lt": ["LtE", "GtE"],
    "LtE": ["Lt", "Gt"],
    "Gt": ["GtE", "LtE"],
    "GtE": ["Gt", "Lt"],
    "Is": ["IsNot"],
    "IsNot": ["Is"],
}
UNARY = ["USub_UAdd", "Invert_UAdd", "Delete_Not"]
PAIRS = {"all": "any", "any": "all", "min": "max", "max": "min"}
OTHERS = [
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ExceptionReplacer",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
]


class OwnOperator(Operator):
    """An operator that changes one node, in one way."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        """Yield where the node is, if this operator changes it."""
        if self.applies(node):
            yield node.start_pos, node.end_pos

    def applies(self, node: Any) -> bool:
        """Tell whether this operator changes the node."""
        raise NotImplementedError

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Return nothing: the tests have examples."""
        return ()


class RemoveStatement(OwnOperator):
    """Leave out a call whose result nobody uses, or an assignment to an attribute or an item."""

    def applies(self, node: Any) -> bool:
        """Tell whether this is such a statement."""
        if node.type != "simple_stmt":
            return False
        first = node.children[0]
        assigns = first.type == "expr_stmt" and first.children[0].type == "atom_expr"
        annotates = assigns and first.children[1].type == "annassign"
        calls = first.type == "atom_expr" and _is_call(first.children[-1])
        return calls or (assigns and not annotates)

    def mutate(self, node: Any, index: int) -> Any:
        """Write `pass` in its place."""
        first = node.children[0]
        node.children[0] = Keyword("pass", first.start_pos, first.get_first_leaf().prefix)
        return node


class SwapFunction(OwnOperator):
    """Call `any` instead of `all`, `max` instead of `min`, and the other way round."""

    def applies(self, node: Any) -> bool:
        """Tell whether this is the name of such a function, where it is called."""
        if node.type != "name" or node.value not in PAIRS:
            return False
        call = node.parent
        return call.type == "atom_expr" and call.children[0] is node and _is_call(call.children[1])

    def mutate(self, node: Any, index: int) -> Any:
        """Write the other name."""
        node.value = PAIRS[node.value]
        return node


class NegateMembership(OwnOperator):
    """Ask whether something is not in a collection, instead of whether it is."""

    def applies(self, node: Any) -> bool:
        """Tell whether this is `in` or `not in` as a comparison."""
        if node.parent is None or node.parent.type != "comparison":
            return False
        return node.get_code().split() in (["in"], ["not", "in"])

    def mutate(self, node: Any, index: int) -> Any:
        """Write the opposite."""
        word = "in" if "not" in node.get_code() else "not in"
        return Keyword(word, node.start_pos, node.get_first_leaf().prefix)


def _is_call(trailer: Any) -> bool:
    return bool(trailer.type == "trailer" and trailer.children[0].value == "(")


def operators() -> dict[str, Operator]:
    """Return all operators by name."""
    provider = OperatorProvider()
    names = [
        *(f"ReplaceBinaryOperator_{old}_{new}" for old, news in BINARY.items() for new in news),
        *(
            f"ReplaceComparisonOperator_{old}_{new}"
            for old, news in COMPARISON.items()
            for new in news
        ),
        *(f"ReplaceUnaryOperator_{name}" for name in UNARY),
        *OTHERS,
    ]
    own = (RemoveStatement, SwapFunction, NegateMembership)
    return {name: provider[name]() for name in names} | {each.__name__: each() for each in own}
