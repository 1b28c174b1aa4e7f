"""What a job with channel levels cannot have."""

from __future__ import annotations

from collections.abc import Mapping

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import Level, Sparsity
from apportion.evaluators.scoring.channels import check_corrections
from apportion.evaluators.training.config import RecoveryConfig
from apportion.search.jobs.layers import LayersConfig
from apportion.search.jobs.sections import CorrectionsConfig, DatabaseConfig


def check_channels(
    database: DatabaseConfig,
    layers: LayersConfig,
    corrections: CorrectionsConfig,
    recovery: RecoveryConfig,
) -> None:
    """Raises ConfigurationError for what does not go together with channel levels."""
    levels = database.expanded()
    if not any(level.channels for level in levels):
        if database.channels is not None:
            raise ConfigurationError(
                "database.channels: database.levels has no level channels-S, such as channels-0.50"
            )
        return
    for level in levels:
        _check_level(level)
    for names in (corrections.score, corrections.export):
        check_corrections(names)
    check_smaller_recovery(recovery)
    refused = {
        "database.sequential": database.sequential,
        "layers.skip (database.channels.skip names layers whose channels stay)": layers.skip,
        "layers.levels": layers.levels,
        "layers.first": layers.first,
        "layers.last": layers.last,
        "database.grid.per: tensor": database.grid.per == "tensor"
        and any(level.quantization for level in levels),
    }
    _refuse(refused)


def check_smaller_recovery(recovery: RecoveryConfig) -> None:
    """Raises ConfigurationError for steps that compare layers with the dense model's, which have
    other shapes."""
    _refuse(
        {
            f"recovery.{step} (finetune trains the smaller model)": getattr(recovery, step)
            for step in ("lintune", "adaprune")
        }
    )


def _refuse(refused: Mapping[str, object]) -> None:
    for what, there in refused.items():
        if there:
            raise ConfigurationError(f"{what}: not for a job with channel levels")


def _check_level(level: Level) -> None:
    own = level.sparsity or Sparsity("nm", 0.0)
    if own.kind != "nm":
        raise ConfigurationError(
            f"database.levels: {level} beside channel levels: N:M patterns and quantization go "
            "together with channels; other sparsity needs a job of its own, on the smaller model"
        )
