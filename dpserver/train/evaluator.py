"""How a model is evaluated in training: by the expansion where it has one, else as it evaluates itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dpserver.errors import ModelFileError
from dpserver.frames import Floats
from dpserver.models.graph import Graph
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.train.expansion import SIZES, Expansion, reason_against
from dpserver.train.room import Room

_INTERVAL: Final = 20
"""Steps after which to look whether the weights ask for more polynomials."""


class Evaluator:
    """Evaluates a model in training.

    Args:
        model: whose weights are trained.
        closest: smallest distance of each pair of species in all data, (n_species, n_species), Å.
        room: where what no weight changes of a batch is kept; by default one of its own.
    """

    def __init__(self, model: Potential | TensorModel, closest: Floats, room: Room | None = None) -> None:
        self.model = model
        self._expansion: Expansion | None = None
        self._reason = reason_against(model)
        if self._reason is None and isinstance(model, Potential):
            self._expansion = Expansion(model, closest, room=room)
            self.follow(0)

    def __call__(self, graph: Graph, *, is_training: bool = False) -> Any:
        """Predict for a batch; see the model's `forward`."""
        return (self._expansion or self.model)(graph, is_training=is_training)

    def follow(self, step: int) -> None:
        """Before a step, adapt to the weights as they are now, if it is time to."""
        if self._expansion is not None and step % _INTERVAL == 0 and not self._expansion.fits():
            self._give_up(self._expansion)

    def describe(self) -> str:
        """What evaluates, in words."""
        if self._expansion is None:
            return f"by automatic differentiation throughout: {self._reason}"
        return f"embedding nets in {self._expansion.count} polynomials"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to know."""
        return {"count": None if self._expansion is None else self._expansion.count}

    def load_state_dict(self, state: Mapping[str, Any], source: str = "the checkpoint") -> None:
        """Go on as a checkpoint has it, which may be of a version that had no expansion.

        Args:
            state: from `state_dict`, of a file.
            source: its name, for the message.

        Raises:
            ModelFileError: the state is none that `state_dict` returns.
        """
        if not isinstance(state, Mapping):
            raise ModelFileError(f"{source} is inconsistent: its resume.evaluator is no dict")
        if "count" not in state:
            return
        count = state["count"]
        if count is not None and (type(count) is not int or count not in SIZES):
            raise ModelFileError(
                f"{source} is inconsistent: its resume.evaluator.count is {str(count)[:40]}, expected None or one of "
                f"{', '.join(map(str, SIZES))}; restart from another checkpoint"
            )
        if self._expansion is None:
            return
        if count is None:
            self._give_up(self._expansion)
        else:
            self._expansion.count = count

    def _give_up(self, expansion: Expansion) -> None:
        """Evaluate by automatic differentiation from now on."""
        expansion.forget()
        self._expansion, self._reason = None, "its embedding nets are not smooth enough"
