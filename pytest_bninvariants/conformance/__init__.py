"""The laws of BatchNorm as tests: `pytest --pyargs pytest_bninvariants.conformance`."""
