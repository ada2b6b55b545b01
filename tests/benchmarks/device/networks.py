"""The network and the step that the measurements on a device share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torchvision.models import resnet18


class Training:
    """Training of a resnet18 on random images; a tiny one has three BN layers.

    Args:
        device: where it runs.
        tiny: whether the network, the images and the batches are small.
        batch: how many images a batch has.
        frozen: whether its BN layers are frozen, as they should be.
        channels_last: the memory format of the network and the images.
        autocast: the dtype to compute in, if not float32.
    """

    def __init__(
        self,
        device: str,
        *,
        tiny: bool,
        batch: int = 32,
        frozen: bool = False,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        torch.manual_seed(0)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._device, self._autocast = device, autocast
        self._shape = (8, 3, 8, 8) if tiny else (batch, 3, 64, 64)
        network = _small_network() if tiny else resnet18(num_classes=10)
        self.model = network.to(device, memory_format=self._format)
        if frozen:
            for layer in self.layers:
                layer.eval().requires_grad_(False)
        trained = [each for each in self.model.parameters() if each.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
        self.data = self.draw()

    @property
    def layers(self) -> list[nn.Module]:
        """Return its BN layers."""
        return [each for each in self.model.modules() if isinstance(each, nn.BatchNorm2d)]

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a new batch of images and labels."""
        images = torch.randn(self._shape).to(self._device, memory_format=self._format)
        return images, (torch.arange(self._shape[0]) % 10).to(self._device)

    def step(self) -> torch.Tensor:
        """Run a step on the latest batch, and return the loss."""
        images, labels = self.data
        kind = torch.device(self._device).type
        self._optimizer.zero_grad()
        with torch.autocast(kind, self._autocast, enabled=self._autocast is not None):
            loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def epoch(self, steps: int, each: Callable[[], object]) -> None:
        """Run some steps, each on a batch of its own.

        Args:
            steps: how many.
            each: runs one of them.
        """
        for _ in range(steps):
            self.data = self.draw()
            each()


def _small_network() -> nn.Module:
    def block(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    return nn.Sequential(block(3), block(8), block(8), nn.Flatten(), nn.Linear(8 * 4, 10))
