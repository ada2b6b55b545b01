"""Let a process that a test starts import the same fault."""

from tests.mutations import imported_source

imported_source.install()
