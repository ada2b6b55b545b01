"""A model is found inside wrappers and trainers."""

from __future__ import annotations

import pytest

from tests.plugin.sessions import Sessions

WRAPPERS = {
    "DataParallel": "nn.DataParallel(net)",
    "compiled": 'torch.compile(net, backend="eager")',
    "DistributedDataParallel": "nn.parallel.DistributedDataParallel(net)",
}


@pytest.mark.usefixtures("_compiler_is_imported")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_found_and_its_modules_keep_their_names(
    sessions: Sessions, wrapper: str
) -> None:
    session = sessions.run(f"""
        import torch.distributed

        @pytest.fixture(autouse=True)
        def _group(tmp_path):
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{{tmp_path}}/store", rank=0, world_size=1
            )
            yield
            torch.distributed.destroy_process_group()

        @pytest.fixture
        def net():
            return Net()

        @pytest.fixture
        def wrapped(net):
            return {WRAPPERS[wrapper]}

        @pytest.mark.frozen_bn
        def test_holds(wrapped, net):
            hold(wrapped)

        @pytest.mark.frozen_bn
        def test_drifts(net, wrapped):
            drift(wrapped)

        @pytest.mark.frozen_bn("bn1")
        def test_drifts_in_a_module_by_its_bare_name(wrapped):
            drift(wrapped)

        @pytest.mark.frozen_bn("bn1")
        def test_holds_in_a_module_by_its_bare_name(wrapped):
            wrapped.eval()
            net = next(wrapped.children())
            net.bn2.train()
            wrapped(batch())

        @pytest.mark.frozen_bn(model="net")
        def test_drifts_in_the_module_inside(wrapped, net):
            drift(wrapped)
    """)
    session.tells_apart()
    assert "(fixture 'wrapped')" in session.texts["test_drifts"]


@pytest.mark.usefixtures("_compiler_is_imported")
def test_a_module_that_is_compiled_in_place_is_found(sessions: Sessions) -> None:
    session = sessions.run("""
        @pytest.fixture
        def compiled():
            net = Net()
            net.compile(backend="eager")
            return net

        @pytest.mark.frozen_bn
        def test_holds(compiled):
            hold(compiled)

        @pytest.mark.frozen_bn
        def test_drifts(compiled):
            drift(compiled)
    """)
    session.tells_apart()


def test_a_lightning_module_is_found(sessions: Sessions) -> None:
    session = sessions.run(
        """
        import lightning
        from torch.utils.data import DataLoader

        class Module(lightning.LightningModule):
            def __init__(self, freeze):
                super().__init__()
                self.net = Net()
                self.head = nn.Linear(4, 1)
                self.net.requires_grad_(False)
                self.freeze = freeze

            def on_train_epoch_start(self):
                if self.freeze:
                    self.net.eval()
                else:
                    self.net.train()

            def training_step(self, x, _):
                return self.head(self.net(x)).pow(2).mean()

            def configure_optimizers(self):
                return torch.optim.SGD(self.head.parameters(), lr=0.1)

        def fit(module):
            trainer = lightning.Trainer(
                max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )
            trainer.fit(module, DataLoader(batch(16), batch_size=8))

        @pytest.fixture
        def module(request):
            return Module(freeze="holds" in request.node.name)

        @pytest.mark.frozen_bn("net")
        @pytest.mark.frozen("net")
        def test_holds(module):
            fit(module)

        @pytest.mark.frozen_bn("net")
        def test_drifts(module):
            fit(module)
    """,
        alone=True,
    )
    session.tells_apart()
    assert "on Module (fixture 'module')" in session.texts["test_drifts"]
