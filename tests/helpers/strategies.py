"""Strategies of Lightning in forked gloo processes, which start in a fraction of a second."""

import contextlib
import datetime
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.helpers import truth

# What torch and Lightning say of forked processes; the ``pytestmark`` of files that start some.
FORKING_IS_FINE = [
    pytest.mark.filterwarnings("ignore:.*This process .* is multi-threaded, use of fork.*"),
    pytest.mark.filterwarnings("ignore:.*barrier.*"),
    pytest.mark.filterwarnings("ignore:.*Using the current device set by the user.*"),
]
PATIENCE = datetime.timedelta(seconds=60)  # until silence of another process is taken for a hang


class _Forked(_MultiProcessingLauncher):
    """Starts processes whose shards stay theirs; the parent has no use for them."""

    def _collect_rank_zero_results(self, trainer: pl.Trainer, results: Any) -> None:
        """Bring nothing back."""

    def _recover_results_in_main_process(self, worker_output: Any, trainer: pl.Trainer) -> None:
        """Take nothing back."""

    def launch(self, *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> None:
        """Run it, and expect no results."""
        with contextlib.suppress(AttributeError):  # raised by the parent when it looks into the missing results
            super().launch(*args, trainer=trainer, **kwargs)


class Sharded(ModelParallelStrategy):
    """FSDP of the second generation, tensor parallelism and both."""

    def __init__(self, data_parallel_size: int, tensor_parallel_size: int = 1) -> None:
        super().__init__(data_parallel_size, tensor_parallel_size, process_group_backend="gloo", timeout=PATIENCE)

    def _configure_launcher(self) -> None:
        self._launcher = _Forked(self, start_method="fork")


class ShardedModel(truth.Model):
    """The network cut into shards by rows; 7, 3 and 1 rows on two ranks are uneven and partly empty."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Flat(FSDPStrategy):
    """FSDP of the first generation on a CPU, which Lightning refuses to the class itself."""

    def __init__(self) -> None:
        super().__init__(process_group_backend="gloo", timeout=PATIENCE)

    def _configure_launcher(self) -> None:
        self._launcher = _Forked(self, start_method="fork")

    def _setup_model(self, model: torch.nn.Module) -> torch.nn.Module:
        self.kwargs["device_id"] = torch.device("cpu")
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def replicated(**options: Any) -> DDPStrategy:
    """Return DDP."""
    return DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=PATIENCE, **options)
