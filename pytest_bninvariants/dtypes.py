"""Names of the dtypes that a layer is tried in; whoever reads options needs no torch for them."""

from __future__ import annotations

HALF = ("bfloat16", "float16")
DTYPES = ("float64", "float32", *HALF)
