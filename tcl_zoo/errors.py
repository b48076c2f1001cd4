"""The errors a user of tcl_zoo can meet: one small family, each message one line that says what to do next."""

from __future__ import annotations


class TclZooError(Exception):
    """Base of every error that tcl_zoo raises on purpose. The commands print it and exit with code 2.

    Its text is one line of at most 1,000 characters, whatever was quoted in it.
    """

    def __str__(self) -> str:
        text = " ".join(super().__str__().split())
        return text if len(text) <= 1000 else f"{text[:690]} ... {text[-300:]}"


class RecipeError(TclZooError, ValueError):
    """An unknown recipe name, an unknown field, or a value of the wrong type or out of range."""


class DataError(TclZooError, ValueError):
    """A data set that is missing, damaged or of the wrong shape."""


class WeightsError(TclZooError, RuntimeError):
    """Released weights that are missing, damaged, foreign, or not the ones the index names."""


class TrainingError(TclZooError, RuntimeError):
    """A training run that cannot start, go on or be resumed."""


class RunInUseError(TrainingError):
    """A run folder that another training holds."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
