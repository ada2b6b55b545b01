"""What a traced session says."""

from __future__ import annotations

import re

from tests.plugin.sessions import Session

TITLE = "who wrote it: a second run, under --bn-trace"
WRITER = (
    "who aten.native_batch_norm.default wrote bn1.running_mean, bn1.running_var, "
    "bn2.running_mean, bn2.running_var at nets.py:19 in forward, by torch.nn.functional.batch_norm"
)
DRIFT = """
    @pytest.mark.frozen_bn
    def test_it(model):
        drift(model)
"""


def said(session: Session, name: str = "test_it") -> str:
    """Return a failure's text in one line, without what pytest puts before lines."""
    return " ".join(re.sub(r"^E\s", " ", session.texts[name], flags=re.MULTILINE).split())
