"""The exceptions of the package: bad input is one sentence that names what and where.

Numerical failure is never an exception: solvers return a status and a covariance.
"""


class PerspBlurError(Exception):
    """Base of every error that a user can cause and read; its text is one sentence."""


class ConfigError(PerspBlurError):
    """An unknown parameter, a wrong type, or a value out of its range."""


class FrameError(PerspBlurError):
    """An image, stamp or calibration that cannot be used."""


class BagError(PerspBlurError):
    """A bag, clip folder or CSV that cannot be read or lacks what is needed."""


class EngineError(PerspBlurError):
    """An inference engine or its files that cannot be had or do not fit."""
