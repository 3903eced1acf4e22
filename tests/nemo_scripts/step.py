"""A step of the harness: one run of a stock script and the check of what it wrote."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Step:
    name: str
    command: list[str]  # arguments of the Python interpreter
    check: Callable[[str], str]  # the step's log -> a short note; raises on anything wrong
    needs: tuple[str, ...] = ()  # steps whose files this one reads


def file_name(step_name: str) -> str:
    return step_name.replace(",", "").replace(" ", "_")  # Hydra reads a comma in a value as a list of runs
