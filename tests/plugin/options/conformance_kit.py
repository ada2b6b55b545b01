"""Layers that somebody wrote, and how the conformance kit is run on them."""

from __future__ import annotations

import re

MINE = '''
"""Layers that somebody wrote."""

import torch
from torch import nn


class Biased2d(nn.BatchNorm2d):
    """Its running_var takes the biased variance; all else is right."""

    def forward(self, x):
        if not self.training or self.running_var is None:
            return super().forward(x)
        before = self.running_var.clone()
        y = super().forward(x)
        with torch.no_grad():
            m = self.momentum
            m = 1 / self.num_batches_tracked.item() if m is None else m
            var = x.detach().to(before.dtype).var((0, 2, 3), unbiased=False)
            self.running_var.copy_((1 - m) * before + m * var)
        return y


class Told2d(nn.BatchNorm2d):
    """It fails if it is not told what it must be."""

    def __init__(self, *args, told=None, **keywords):
        if told != (1, "a", None, [0.5, {"b": False}]):
            raise RuntimeError(f"I was told {told}")
        super().__init__(*args, **keywords)


class Flat(nn.modules.batchnorm._BatchNorm):
    """It takes (N, C) alone."""

    def _check_input_dim(self, input):
        if input.dim() != 2:
            raise ValueError("expected (N, C)")


class Norm(nn.BatchNorm2d):
    """Its name has no rank, and it needs none."""


class Wrapper2d(nn.Module):
    """A BatchNorm inside of another module."""

    def __init__(self, channels, *settings, **keywords):
        super().__init__()
        self.inner = nn.BatchNorm2d(channels, *settings, **keywords)

    def forward(self, x):
        return self.inner(x)


number = 3
layer = Norm(3)
'''
ARGS = ("-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function")
KIT = ("--pyargs", "pytest_bninvariants.conformance")
FEW, SOME = "--bn-examples=2", "--bn-examples=25"  # few find no defect, some find a coarse one
QUICK = ("--bn-laws=running_mean", "--bn-dtype=float32", FEW)
OUR_FILE = re.compile(r"pytest_bninvariants[/\\]\w|hypothesis[/\\]core\.py")
SUMMARY = re.compile(r"(PASSED|FAILED|XFAIL|ERROR) \S*?::(\S*\[.*?\])(?= - |$)(?: - (.*))?")
PLAIN = ("test_plain.py", "-q")
NONE = "no test of the conformance kit was collected; give `--pyargs pytest_bninvariants.conform"
