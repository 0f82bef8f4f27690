"""The learning system: layers that learn locally, stages, channels, data. Knows nothing of Ray."""

from pipeline.errors import RunError, UserError
from pipeline.export import Network, load

__all__ = ["Network", "RunError", "UserError", "load"]
