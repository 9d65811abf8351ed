"""What checks the signatures of the rooms that have shapes in them, by jaxtyping's import hook."""

import inspect
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

ROOMS = ("losses", "memory", "layers", "retrieval", "arrays")
CONF = BeartypeConf(is_pep484_tower=True)  # whole numbers are floats


def has_shape(hint):
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(has_shape, get_args(hint)))


def checked(function):
    """Checks arrays with shapes alone: what else is wrong the function itself refuses in words of its own, and a
    container of arrays may have leaves of any kind (placements, structures) while JAX takes it apart."""
    function.__annotations__ = {
        name: hint if has_shape(hint) else Any for name, hint in function.__annotations__.items()
    }
    return beartype(function, conf=CONF)
