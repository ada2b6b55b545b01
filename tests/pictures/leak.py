"""Draw the picture at the top of the README: `python -m tests.pictures.leak docs/leak.svg`.

A resnet18 with a frozen backbone trains its head; after 24 steps somebody calls `model.train()`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torchvision.models import ResNet, resnet18

from pytest_bninvariants import FrozenStateChanged, frozen_bn, run_config
from pytest_bninvariants.drift_history import DriftHistory
from pytest_bninvariants.reporting.page.heat_strip import heat_strip

STYLE = Path(heat_strip.__code__.co_filename).with_name("style.css")


def train(model: ResNet, steps: int, *, forgets_after: int) -> None:
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.01)
    for step in range(steps):
        if step == forgets_after:
            model.train()
        optimizer.zero_grad()
        images = 2 * torch.randn(8, 3, 64, 64) + 1  # other data than the backbone has seen
        model(images).square().mean().backward()
        optimizer.step()


def leak() -> DriftHistory:
    torch.manual_seed(0)
    model = resnet18(num_classes=4)
    with torch.no_grad():
        for _ in range(20):  # statistics of some data, as a checkpoint has
            model(torch.randn(8, 3, 64, 64))
    model.requires_grad_(False).eval()
    model.fc.requires_grad_(True)
    with run_config.override(histories="broken"):
        try:
            with frozen_bn(model):
                train(model, 48, forgets_after=24)
        except FrozenStateChanged as changed:
            history = changed.verdict.history
            assert history is not None
            return history
    raise AssertionError("the leak was not found")


def standalone(picture: str) -> str:
    """Return the SVG of a strip as a file of its own, with the styles that it uses."""
    svg = picture[: picture.index("</svg>") + len("</svg>")]
    style = STYLE.read_text(encoding="utf-8").replace(":root", "svg")
    ground = '<rect width="100%" height="100%" style="fill: var(--ground)"/>'
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{ground}{rest}\n'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(standalone(heat_strip(leak())), encoding="utf-8")
