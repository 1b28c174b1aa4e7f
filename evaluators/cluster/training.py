"""Fine-tuning by several processes of a Ray cluster: Ray Train's TorchTrainer, and its
checkpoints."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import torch

from apportion.compressors.errors import ConfigurationError, TrainingError
from apportion.compressors.progress import Progress, silent
from apportion.compressors.threads import torch_threads
from apportion.evaluators.cluster.connection import Connection
from apportion.evaluators.cluster.room import cluster_room
from apportion.evaluators.data.dataset import Dataset
from apportion.evaluators.training.checkpoints import read_state
from apportion.evaluators.training.config import FinetuneConfig
from apportion.evaluators.training.recovery import Recovery, Team

_FILE = "state.pt"
_LOST_AT_MOST = 3
"""Times that workers may be lost; each time the training goes on at its last whole epoch."""


def train_together(
    recovery: Recovery,
    data: Dataset,
    config: FinetuneConfig,
    each: Mapping[str, float],
    folder: Path,
    progress: Progress = silent,
) -> None:
    """Run `recovery.finetune(data, config)` on several processes, which split every batch;
    normalisations see their own part of it.

    Args:
        recovery: the training. The last state ends in its checkpoints, so that its own `finetune`
            ends at once.
        data: what it trains on.
        config: `config.workers` is the number of processes.
        each: resources of a process by name.
        folder: where Ray Train keeps its states; all nodes must see it.
        progress: told of epochs.

    Raises:
        ConfigurationError: the processes do not divide the batch.
        TrainingError: the training failed on them.
    """
    count = config.workers
    if recovery.batch_size % count:
        raise ConfigurationError(
            f"recovery.finetune.workers: {count} do not divide workload.batch_size, "
            f"{recovery.batch_size}"
        )
    done = recovery.checkpoints.read("finetune")
    if done is not None and (done.get("key"), done.get("epoch")) == (recovery.key, config.epochs):
        return
    needs = {name: amount for name, amount in each.items() if amount}
    connection = Connection(count * each["CPU"], count * each.get("GPU", 0))
    ray = connection.open()
    try:
        cluster_room(ray).check(count, needs)
        recovery.checkpoints.write(
            "finetune", _trained(ray, recovery, data, config, needs, folder, progress)
        )
    finally:
        connection.close()


def _trained(
    ray: Any,
    recovery: Recovery,
    data: Dataset,
    config: FinetuneConfig,
    needs: dict[str, float],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The state after the last epoch."""
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    epochs = Queue(actor_options={"num_cpus": 0})

    class Report(ray.train.UserCallback):  # in a process of Ray Train's
        def after_report(
            self,
            run_context: Any,  # noqa: ARG002
            metrics: list[dict[str, Any]],
            checkpoint: Any,  # noqa: ARG002
        ) -> None:
            epochs.put(metrics[0]["epoch"])

    def follow() -> None:
        while (epoch := epochs.get()) is not None:
            progress("finetune, epochs", epoch, config.epochs)

    sent = ray.put((replace(recovery, progress=silent), data, config))  # once per node
    threads = int(needs["CPU"])

    def loop() -> None:
        work, split, wanted = ray.get(sent)
        _work(work, split, wanted, threads)

    trainer = TorchTrainer(
        loop,
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=bool(needs.get("GPU")), resources_per_worker=needs
        ),
        run_config=ray.train.RunConfig(
            name=f"finetune-{recovery.key[:12]}",  # of the same name goes on where it was stopped
            storage_path=str(folder.absolute()),
            failure_config=ray.train.FailureConfig(max_failures=_LOST_AT_MOST),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            callbacks=[Report()],
        ),
    )
    follower = Thread(target=follow, daemon=True)
    follower.start()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        result = trainer.fit()
    except SystemExit as error:  # what Ray Train makes of Ctrl-C
        raise KeyboardInterrupt from error
    except Exception as error:  # Ray Train's own kinds differ from version to version
        raise TrainingError(str(error)) from error
    finally:
        if current_thread() is main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Ray Train leaves its own
        epochs.put(None)
        follower.join()
    assert result.checkpoint is not None  # of the last epoch
    with result.checkpoint.as_directory() as kept:
        return read_state(Path(kept) / _FILE)


def _work(recovery: Recovery, data: Dataset, config: FinetuneConfig, threads: int) -> None:
    """One worker's part."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    recovery.team = Team(context.get_world_rank(), context.get_world_size(), prepare_model)
    recovery.device = str(get_device())
    recovery.checkpoints = _RayCheckpoints(context.get_world_rank() == 0)
    with torch_threads(threads):
        recovery.finetune(data, config)


@dataclass(frozen=True, slots=True)
class _RayCheckpoints:
    """What Ray Train keeps of the training that this process is a part of; the first process's
    state is every other's."""

    first: bool

    def write(self, name: str, content: dict[str, Any]) -> None:  # noqa: ARG002 - there is one
        import ray.train

        metrics = {"epoch": content["epoch"]}
        if not self.first:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(content, Path(folder) / _FILE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def read(self, name: str) -> dict[str, Any] | None:  # noqa: ARG002
        import ray.train

        kept = ray.train.get_checkpoint()
        if kept is None:
            return None
        with kept.as_directory() as folder:
            return read_state(Path(folder) / _FILE)
