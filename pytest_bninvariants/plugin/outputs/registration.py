"""Register the outputs that a run asks for, or that its CI reads."""

from __future__ import annotations

import os

import pytest

from pytest_bninvariants.plugin.options import SETTINGS
from pytest_bninvariants.ranks.environment import launched_world


def register_outputs(config: pytest.Config, *, is_sent: bool) -> None:
    """Register what collects findings, and what writes them, if anything is to be written.

    Args:
        config: the session's configuration.
        is_sent: whether this is one rank's session, which sends its reports to another one.
    """
    settings = config.stash[SETTINGS]
    if settings.bn_report is not None:
        from pytest_bninvariants.plugin.outputs.pictures import PictureNotes

        notes = PictureNotes(settings.bn_report, config.pluginmanager)
        config.pluginmanager.register(notes, "bninvariants-picture-notes")
    writes_junit = bool(config.getoption("xmlpath", None))
    on_github = os.environ.get("GITHUB_ACTIONS") == "true" and _speaks_for_all_ranks()
    tells_all = config.get_verbosity() > 0
    if is_sent or hasattr(config, "workerinput"):
        return
    if not (writes_junit or on_github or tells_all or settings.bn_report):
        return
    from pytest_bninvariants.plugin.outputs.run_record import RunRecord

    record = RunRecord(writes_properties=writes_junit)
    config.pluginmanager.register(record, "bninvariants-run-record")
    if tells_all:
        from pytest_bninvariants.plugin.outputs.held_guards import HeldGuards

        config.pluginmanager.register(HeldGuards(record), "bninvariants-held-guards")
    if settings.bn_report is not None and _speaks_for_all_ranks():
        from pytest_bninvariants.plugin.outputs.report_files import ReportFiles

        files = ReportFiles(record, settings.bn_report)
        config.pluginmanager.register(files, "bninvariants-report-files")
    if on_github:
        from pytest_bninvariants.plugin.outputs.github_output import GitHubOutput

        output = GitHubOutput(record, config.rootpath)
        config.pluginmanager.register(output, "bninvariants-github-output")


def _speaks_for_all_ranks() -> bool:
    world = launched_world()
    return world is None or world.rank == 0
