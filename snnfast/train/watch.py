"""What the layers of a network do while it is trained, for the rows of an epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

from snnfast.monitoring import Monitor, monitor
from snnfast.train.config import Config, ConfigError
from snnfast.train.loop import Trainer, spiking


def check(config: Config) -> None:
    """Raise ConfigError where layers are to be looked at that cannot be."""
    if config.monitor and (config.compile != "none" or config.cuda_graph):
        raise ConfigError(
            "monitor must be false where compile is not none or cuda_graph is true: neither lets "
            "the layers be looked at"
        )


@contextmanager
def layers(config: Config, trainer: Trainer) -> Iterator[Monitor | None]:
    """The records of a phase; None where they are not asked for, or there are none to come."""
    steps = trainer.epoch < trainer.options.epochs
    if not (config.monitor and steps and spiking(trainer.model)):
        yield None
        return
    with monitor(trainer.model) as found:
        yield found
