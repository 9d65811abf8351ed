"""Training state on disk: written whole or not at all, restored onto any mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

STATE, META = "state", "meta"


class Checkpoints:
    """Numbered checkpoints under a workdir; number n holds the state after n epochs of the whole run.

    Writing goes on in the background. Frozen weights are written once per stage beside them.
    """

    def __init__(self, workdir: Path, keep: int = 2) -> None:
        self.directory = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.directory / "epochs", options=options)

    def latest(self) -> int | None:
        """The newest complete checkpoint's number, None where there is none."""
        return self._manager.latest_step()

    def save(self, number: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts writing; `meta` (JSON) says where in the run the state belongs."""
        arguments = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(meta)}
        self._manager.save(number, args=ocp.args.Composite(**arguments))

    def meta(self, number: int) -> dict[str, Any]:
        arguments = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
        return self._manager.restore(number, args=arguments)[META]

    def restore(self, number: int, like: Any, shardings: Any) -> Any:
        """The state of a checkpoint, with the shapes of `like`, placed by `shardings`.

        Raises:
          ValueError: the checkpoint cannot be read into this state; the message says what to do.
        """
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
        arguments = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)})
        try:
            return self._manager.restore(number, args=arguments)[STATE]
        except Exception as error:
            others = [step for step in self._manager.all_steps() if step != number]
            hint = (
                f"delete {self.directory / 'epochs' / str(number)} to go back to epoch {max(others)}"
                if others
                else ("no earlier checkpoint is left; use another --workdir")
            )
            raise ValueError(
                f"checkpoint {self.directory / 'epochs' / str(number)} cannot be restored: {error}\n{hint}"
            ) from error

    def save_frozen(self, stage: str, tree: Any) -> None:
        """Weights that a stage does not train; written once."""
        path = self.directory / "frozen" / stage
        if jax.tree.leaves(tree) and not path.exists():
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(path, tree)

    def restore_frozen(self, stage: str, like: Any, shardings: Any) -> Any:
        if not jax.tree.leaves(like):
            return like
        target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, shardings)
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(self.directory / "frozen" / stage, target)

    def wait(self) -> None:
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
