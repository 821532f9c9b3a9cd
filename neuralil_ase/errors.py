"""The errors that this package raises.

Every message says what happened, what it usually means and what to do about it. Each class also derives
from the built-in exception that Python code would expect in its place, so that generic handlers work.
"""


class NeuralILError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(NeuralILError, ValueError):
    """The description of a model, a training run or a monitor is not valid."""


class StructureError(NeuralILError, ValueError):
    """A structure cannot be evaluated: unknown element, non-finite positions, degenerate cell."""


class PredictionError(NeuralILError, ArithmeticError):
    """A potential gives no finite energy or forces for a valid structure."""


class ModelFileError(NeuralILError, ValueError):
    """A model file is forged, truncated, oversized, too new or inconsistent."""


class OutputError(NeuralILError, OSError):
    """A file cannot be written: no such folder, no permission, disk full. An existing file is unchanged."""


class DependencyError(NeuralILError, ImportError):
    """An optional package is needed but not installed."""


class DataError(NeuralILError, ValueError):
    """A data set lacks what training or evaluation needs, or holds values that cannot be right."""


class UncertaintyError(NeuralILError, AttributeError):
    """The prediction does not contain the requested uncertainty."""


class TrainingError(NeuralILError, RuntimeError):
    """Training cannot continue, for instance because the loss is no longer finite."""


class MonitorError(NeuralILError, RuntimeError):
    """A monitor cannot do its work, for instance because the model has a single member."""


class ProcessError(NeuralILError, RuntimeError):
    """A process cannot compute because of the way it was started, or worker processes died."""


class TeacherError(NeuralILError, RuntimeError):
    """The calculator that labels frames cannot be used, or has failed for one of them."""


class QueryLimitError(NeuralILError, RuntimeError):
    """A run needs more labels than its query limits allow. All labels and the model are on disk."""
