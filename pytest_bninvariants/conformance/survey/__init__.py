"""A survey of public norm layers: `python -m pytest_bninvariants.conformance.survey`."""
