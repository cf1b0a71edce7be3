"""The smooth descriptor of angles, se_e3."""

from __future__ import annotations

from typing import Literal

from dpserver.models.config.smooth import SmoothConfig


class SeE3Config(SmoothConfig):
    """The smooth descriptor se_e3 (aliases se_at, se_a_3be, se_t): three-body embedding.

    It has an embedding net for each pair of species of neighbours, the same for all centres; an excluded neighbour
    takes its slot and adds nothing.

    Attributes:
        type_one_side: False; there is nothing to choose.
        keeps_excluded_slots: None, likewise.
    """

    type: Literal["se_e3"] = "se_e3"
    type_one_side: Literal[False] = False
    keeps_excluded_slots: None = None
