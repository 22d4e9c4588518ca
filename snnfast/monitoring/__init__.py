"""What goes on inside a model: rates, potentials and gradients per layer and timestep; energy."""

from snnfast.monitoring.energy import measure
from snnfast.monitoring.monitor import Monitor, monitor

__all__ = ["Monitor", "measure", "monitor"]
