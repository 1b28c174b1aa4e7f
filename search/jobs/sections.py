"""The sections of a job file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from apportion.compressors.corrections import check_correction
from apportion.compressors.errors import ApportionError
from apportion.compressors.grids import GridOptions
from apportion.compressors.levels import Level, expand_levels
from apportion.compressors.options import CompressionOptions
from apportion.db.documents.section import SEEDS, Section
from apportion.evaluators.data.augment import AugmentConfig
from apportion.evaluators.scoring.pool import DEADLINE
from apportion.evaluators.scoring.precision import check_precision
from apportion.search.algorithms.registry import resolve
from apportion.search.jobs.channels import ChannelsConfig


@contextmanager
def explained() -> Iterator[None]:
    """Hand our own errors to pydantic as its kind, which adds the field that was wrong."""
    try:
        yield
    except ApportionError as error:
        raise ValueError(str(error)) from error


class GridConfig(Section):
    """Grids of quantized weights."""

    per: Literal["channel", "tensor"] = Field(
        "channel", description="One grid per output channel, or per layer."
    )
    symmetric: bool = Field(False, description="Symmetric about zero.")
    fit: Literal["mse", "minmax"] = Field(
        "mse", description="The range with the least error, or the full one."
    )
    scale: Literal["free", "power-of-two"] = Field(
        "free", description="Any steps, or powers of two (Ristretto)."
    )


class DatabaseConfig(Section):
    """Where the layer database lies and which levels it holds."""

    path: Path = Field(description="Folder of the layer database, relative to the job file.")
    levels: tuple[str, ...] = Field(
        ("dense", "unstr-0.10..0.99"),
        min_length=1,
        description="Levels and ladders, such as dense, unstr-0.10..0.99, 2:4.",
    )
    damping: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the mean diagonal that is added to each Hessian's diagonal.",
    )
    grid: GridConfig = Field(default_factory=lambda: GridConfig.model_validate({}))
    augment: AugmentConfig | None = Field(
        None, description="Augmented calibration data; default: plain ones, once."
    )
    sequential: bool = Field(
        False,
        description="Make every level on what reaches a layer when all earlier layers are at that "
        "level too; default: all layers "
        "on the dense model's, which keeps them independent.",
    )
    channels: ChannelsConfig | None = Field(
        None, description="How channels go, where there are levels channels-S."
    )
    memory: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)?\s*(KiB|MiB|GiB)$",
        description="Memory that the work on one layer may take, such as 8GiB; default: a quarter "
        "of what is free.",
    )

    @field_validator("levels")
    @classmethod
    def _check(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        with explained():
            levels = expand_levels(texts)
        if not any(level.is_dense for level in levels):
            raise ValueError(
                "'dense' must be among the levels, so that every layer has at least one"
            )
        return texts

    def expanded(self) -> list[Level]:
        return expand_levels(self.levels)

    @property
    def has_channels(self) -> bool:
        """Whether there are levels of channel groups."""
        return any(level.channels for level in self.expanded())

    def options(self) -> CompressionOptions:
        memory = None
        if self.memory is not None:
            number, unit = re.fullmatch(r"([\d.]+)\s*(\w+)", self.memory).groups()  # type: ignore[union-attr]
            memory = int(float(number) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit])
        return CompressionOptions(
            self.damping, GridOptions(**self.grid.model_dump()), self.sequential, memory
        )


class SearchConfig(Section):
    """Which algorithms search, how long, and with which seeds."""

    algorithms: tuple[str | dict[str, dict[str, Any]], ...] = Field(
        ("spdy", "dp", "ga", "random"),
        min_length=1,
        description="Names, or {name: {parameter: value}}.",
    )
    evaluations: int = Field(
        300,
        ge=1,
        le=10**9,
        description="Full evaluations that each algorithm may ask for, per seed.",
    )
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="One run per algorithm and seed."
    )
    picks: int = Field(
        10,
        ge=1,
        description="The final profile of a run is picked among so many near its best fitness, on "
        "data that the search did "
        "not see; 1: the best fitness.",
    )

    @field_validator("algorithms")
    @classmethod
    def _known(cls, algorithms: tuple[Any, ...]) -> tuple[Any, ...]:
        for algorithm in algorithms:
            if isinstance(algorithm, dict) and len(algorithm) != 1:
                raise ValueError(
                    f"an algorithm with parameters is written {{name: {{parameter: value}}}}, got "
                    f"{algorithm}"
                )
            with explained():
                resolve(algorithm if isinstance(algorithm, str) else next(iter(algorithm)))
        pairs = [(a, {}) if isinstance(a, str) else next(iter(a.items())) for a in algorithms]
        for i, (name, _) in enumerate(pairs):
            if pairs[i] in pairs[:i]:
                raise ValueError(f"the algorithm {name!r} is named twice with equal parameters")
        return algorithms

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= seed < SEEDS for seed in seeds) or len(set(seeds)) != len(seeds):
            raise ValueError("seeds must be different whole numbers, 0 or above and below 2^63")
        return seeds

    def with_parameters(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and parameters of every algorithm, in the order given."""
        return [(a, {}) if isinstance(a, str) else next(iter(a.items())) for a in self.algorithms]


class CorrectionsConfig(Section):
    """What is put right after stitching, in the order given: batchnorm (its statistics averaged
    anew), statistics (mean and variance per channel matched to the dense model's), bias (the mean
    alone)."""

    score: tuple[str, ...] = Field(
        (), description="For every candidate, on the calibration data, before it is scored."
    )
    export: tuple[str, ...] = Field(
        ("batchnorm",), description="For the exported model, on the training data."
    )

    @field_validator("score", "export")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        with explained():
            for name in names:
                check_correction(name)
        return names


class WorkersConfig(Section):
    """Who scores the candidates."""

    count: int = Field(
        0, ge=0, le=10_000, description="Ray actors, at most; 0: in this process, without Ray."
    )
    at_least: int | None = Field(
        None,
        ge=1,
        description="Actors that the cluster, or what its autoscaler makes of it, must have room "
        "for; the others join when there is room. Default: all.",
    )
    deadline: float = Field(
        DEADLINE,
        gt=0,
        description="Seconds after which an actor that scores one candidate counts as hung.",
    )
    cpus: int = Field(1, ge=1, le=1024, description="CPU threads of each worker.")
    gpus: float = Field(0, ge=0, le=64, description="GPUs of each worker; 0: on the CPU.")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="Custom Ray resources of each worker, such as {a100: 1}: where on the cluster "
        "it runs.",
    )
    precision: str = Field(
        "float32",
        description="float32, or bf16: faster on GPUs; the search says how far ranks agree.",
    )

    @model_validator(mode="after")
    def _room(self) -> WorkersConfig:
        if self.at_least is not None and self.at_least > self.count:
            raise ValueError(
                f"at_least: {self.at_least} workers of the {self.count} that count allows"
            )
        return self

    @field_validator("precision")
    @classmethod
    def _precision(cls, name: str) -> str:
        with explained():
            return check_precision(name)

    @property
    def each(self) -> dict[str, float]:
        """What a worker needs, by the names of Ray's resources."""
        return {"CPU": self.cpus, "GPU": self.gpus, **self.resources}


class LatencyConfig(Section):
    """Where the times of layers come from."""

    table: str = Field(
        description="SPDY's text format, CSV with the columns layer, level, seconds, or "
        "package.module:function of your own."
    )
    clean: bool = Field(
        True, description="Make times non-increasing in sparsity, by isotonic regression."
    )
