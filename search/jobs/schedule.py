"""The job file's `schedule`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from pydantic import Field, model_validator

from apportion.compressors.errors import ConfigurationError
from apportion.compressors.levels import Level
from apportion.db.documents.section import Section
from apportion.evaluators.models import onnx_source
from apportion.evaluators.training.config import RecoveryConfig
from apportion.evaluators.workloads.config import WorkloadConfig

Kind = Literal["one-shot", "agp", "linear", "lottery", "netadapt"]
_STEPWISE = ("agp", "linear", "lottery")
_OWN: dict[str, tuple[str, ...]] = {
    "iterations": _STEPWISE,
    "epochs": _STEPWISE,
    "regrow": ("agp", "linear"),
    "step": ("netadapt",),
    "decay": ("netadapt",),
    "short": ("netadapt",),
}
"""Key -> the kinds that have it."""


class ScheduleConfig(Section):
    """In how many steps `apportion prune` reaches the budgets."""

    kind: Kind = Field(
        "one-shot",
        description="one-shot; agp, linear or lottery: steps whose budgets fall as a cubic, a line "
        "or a geometric row, with training between; netadapt: the best of each group's proposals, "
        "again and again.",
    )
    iterations: int = Field(
        4, ge=1, le=1000, description="Steps of agp, linear and lottery, the last one included."
    )
    epochs: int = Field(
        1,
        ge=0,
        description="Passes over the training data after every step but the last (whose training "
        "`recovery` says), with recovery.finetune's other settings.",
    )
    regrow: bool = Field(
        False,
        description="Train all weights between steps, those that a step removed too, so that the "
        "next one chooses among all; default: they stay zero.",
    )
    step: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="netadapt: the share of the dense model's cost by which the first iteration "
        "lowers each budget's metric.",
    )
    decay: float = Field(
        1.0, gt=0, le=1, description="netadapt: from iteration to iteration, `step` times this."
    )
    short: int = Field(32, ge=0, description="netadapt: training steps (batches) of each proposal.")

    @model_validator(mode="after")
    def _together(self) -> ScheduleConfig:
        for key in self.model_fields_set & set(_OWN):
            given = getattr(self, key) not in (None, type(self).model_fields[key].default)
            if given and self.kind not in _OWN[key]:
                raise ValueError(f"{key}: it is for {' and '.join(_OWN[key])}, not {self.kind}")
        if (self.kind == "lottery" or self.regrow) and not self.epochs:
            raise ValueError("epochs: lottery and regrow train between steps; 1 or more are needed")
        return self

    @property
    def is_stepwise(self) -> bool:
        """Whether it makes an ordinary job of every step."""
        return self.kind in ("one-shot", *_STEPWISE)

    @property
    def steps(self) -> int:
        return self.iterations if self.kind in _STEPWISE else 1

    def check(
        self,
        levels: Sequence[Level],
        budgets: Collection[str],
        recovery: RecoveryConfig,
        workload: WorkloadConfig,
    ) -> None:
        """Raises ConfigurationError for what the schedule cannot have."""
        if self.kind == "one-shot":
            return
        if not budgets:
            raise ConfigurationError(
                f"schedule: {self.kind} goes down to budgets, and the job has none; name them in "
                "budgets"
            )
        if onnx_source.is_onnx(workload.name) or workload.fold:
            what = "workload.fold" if workload.fold else "an ONNX file as workload.model"
            raise ConfigurationError(
                f"schedule: {what} makes a model that the next step's weights do not fit"
            )
        if self.kind == "lottery":
            _check_lottery(recovery)
        if self.regrow and any(level.channels or level.quantization for level in levels):
            raise ConfigurationError(
                "schedule.regrow: only weights that are zero can come back, not channels that are "
                "gone, nor weights on grids"
            )
        if self.kind == "netadapt":
            self._check_netadapt(levels, budgets)

    def _check_netadapt(self, levels: Sequence[Level], budgets: Collection[str]) -> None:
        if not any(0 < level.channels < 1 for level in levels):
            raise ConfigurationError(
                "schedule: netadapt makes channel groups smaller; database.levels needs channel "
                "levels, such as channels-0.50"
            )
        if joint := [level for level in levels if level.quantization or level.sparsity]:
            raise ConfigurationError(
                f"schedule: netadapt removes channels alone; level {joint[0]} needs a job of its "
                "own, on the smaller model"
            )
        if wrong := sorted(set(budgets) - {"flops", "params"}):
            raise ConfigurationError(
                f"schedule: netadapt has budgets of flops and params, not {wrong[0]}"
            )


def _check_lottery(recovery: RecoveryConfig) -> None:
    if recovery.rewind is None:
        raise ConfigurationError(
            "schedule: lottery sets weights back to given ones; recovery.rewind must name their "
            "file (.safetensors or .pt, of the dense model's early training)"
        )
    if recovery.finetune is None:
        raise ConfigurationError(
            "schedule: lottery trains what it sets back; recovery.finetune must say how"
        )
