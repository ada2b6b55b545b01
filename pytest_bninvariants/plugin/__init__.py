"""The pytest layer: what pytest loads as the plugin, by its entry point or with `-p`."""

from pytest_bninvariants.plugin.hooks import (
    pytest_addoption as pytest_addoption,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_collection_modifyitems as pytest_collection_modifyitems,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_configure as pytest_configure,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_generate_tests as pytest_generate_tests,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_runtest_call as pytest_runtest_call,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_runtest_makereport as pytest_runtest_makereport,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_runtest_protocol as pytest_runtest_protocol,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_runtest_setup as pytest_runtest_setup,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_runtest_teardown as pytest_runtest_teardown,
)
from pytest_bninvariants.plugin.hooks import (
    pytest_terminal_summary as pytest_terminal_summary,
)
