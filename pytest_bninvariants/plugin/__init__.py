"""The pytest layer: what pytest loads as the plugin, by its entry point or with `-p`."""

from pytest_bninvariants.plugin.hooks import (
    pytest_addhooks as pytest_addhooks,
    pytest_addoption as pytest_addoption,
    pytest_collection_finish as pytest_collection_finish,
    pytest_collection_modifyitems as pytest_collection_modifyitems,
    pytest_configure as pytest_configure,
    pytest_generate_tests as pytest_generate_tests,
    pytest_report_header as pytest_report_header,
    pytest_runtest_call as pytest_runtest_call,
    pytest_runtest_makereport as pytest_runtest_makereport,
    pytest_runtest_protocol as pytest_runtest_protocol,
    pytest_runtest_setup as pytest_runtest_setup,
    pytest_runtest_teardown as pytest_runtest_teardown,
    pytest_terminal_summary as pytest_terminal_summary,
)
