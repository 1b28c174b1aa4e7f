"""The job file's `database.channels`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from apportion.compressors.errors import ApportionError
from apportion.compressors.groups import criteria
from apportion.db.channels.sizes import SizeRules
from apportion.db.documents.section import Section

_Multiple = Annotated[int, Field(ge=1, le=1 << 20)]


class ChannelsConfig(Section):
    """How channels go, where `database.levels` has `channels-S`. Patterns are names of layers that
    make channels, with * and ?."""

    multiple: _Multiple | dict[str, _Multiple] = Field(
        8,
        description="What is left of a group is a multiple of this, or all; or pattern -> that.",
    )
    least: int = Field(1, ge=1, description="Channels of each group that stay in any case.")
    skip: tuple[str, ...] = Field((), description="Layers whose channels all stay.")
    criterion: str = Field(
        criteria.OBS,
        description="Which channels go first: obs (what the layers that read them lose), l1, l2, "
        "fpgm, taylor, hessian, random, or one of your own.",
    )

    @field_validator("criterion")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            criteria.check_criterion(name)
        except ApportionError as error:
            raise ValueError(str(error)) from error
        return name

    def rules(self) -> SizeRules:
        multiple = self.multiple if isinstance(self.multiple, dict) else {"*": self.multiple}
        return SizeRules(multiple, self.least, self.skip)
