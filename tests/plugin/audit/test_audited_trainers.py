"""`--bn-audit` names the trainer that ran a model."""

from __future__ import annotations

import re

from tests.plugin.audit.audit_summary import summary_of
from tests.plugin.sessions import Sessions

LIGHTNING = """
import lightning
from torch.utils.data import DataLoader, TensorDataset

class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Net().train()
        self.net.bn1.requires_grad_(False)

    def training_step(self, batch, number):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

def fit(model):
    data = DataLoader(TensorDataset(batch()), batch_size=4)
    lightning.Trainer(accelerator="cpu", max_epochs=1, barebones=True).fit(model, data)
"""


def test_lightning_names_its_trainer(sessions: Sessions) -> None:
    session = sessions.run(
        """
        def test_fit():
            model = Lit()
            fit(model)
        """,
        "--bn-audit",
        "-pno:warnings",
        before=LIGHTNING,
        alone=True,  # it imports what cannot be imported twice
    )
    said = summary_of(session)
    assert "Lit: 1 frozen BN layer moved: net.bn1" in said
    assert re.search(r"first at test_it\.py:\d+ in fit, by lightning\.pytorch\.", said), said


def test_the_hugging_face_trainer_is_named(sessions: Sessions) -> None:
    session = sessions.run(
        """
        from transformers import (
            ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments
        )

        def test_trainer(tmp_path):
            model = ResNetForImageClassification(ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
            ))
            model.resnet.requires_grad_(False)
            model.resnet.eval()
            data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 2} for i in range(4)]
            Trainer(model=model, train_dataset=data, args=TrainingArguments(
                output_dir=str(tmp_path), max_steps=1, use_cpu=True, save_strategy="no",
                logging_strategy="no", report_to="none", disable_tqdm=True,
            )).train()
        """,
        "--bn-audit",
        "-pno:warnings",
        alone=True,
    )
    said = summary_of(session)
    assert "ResNetForImageClassification: 6 frozen BN layers moved: resnet.embedder." in said
    assert "in test_trainer, by transformers.trainer." in said
    assert "fix override train() on the model, so that it ends with .eval() on resnet." in said
