"""One run: data, teacher, student, evaluation, report."""

import copy
import time
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from snnfast.data import ImageData, load_data
from snnfast.data.extras import require
from snnfast.distill import TWKD
from snnfast.models import create_model
from snnfast.train import report
from snnfast.train.checkpoint import STUDENT, TEACHER, save_model, write_atomic
from snnfast.train.config import Config, ConfigError, dump
from snnfast.train.evaluate import accuracy, predict, time_steps
from snnfast.train.loop import Objective, Schedule, fit

CONFIG = "config.toml"
FILES = (STUDENT, TEACHER, CONFIG, report.METRICS, report.PLOT)


def train(config: Config) -> report.Metrics:
    """Run a recipe and leave ``FILES`` in ``config.output``, in place of those of an earlier run.

    Weights are saved after every epoch. Raises ConfigError before any work where the config names
    something that is not there, TrainingError where a loss is not finite, ImportError where an
    optional package is missing; KeyboardInterrupt passes through.
    """
    require("tqdm")
    require("matplotlib")
    device = choose_device(config.device)
    data = configured(
        "data", load_data, config.data.name, train=config.data.train, test=config.data.test
    ).to(device)
    # The global generator gives the first weights; the caller's stream is left as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        teacher = configured("teacher.model", _teacher, config, data)
        student = configured("model", _student, config, data)
    criterion = TWKD(**asdict(config.twkd))

    output = _prepare(config)
    metrics = report.Metrics(output / report.METRICS)

    def teach(model, images, targets):
        loss = F.cross_entropy(model(images), targets)
        return loss, {"ce": loss.detach()}

    def distill(model, images, targets):
        with torch.no_grad():
            taught = teacher(images)
        return criterion(model(images), targets, taught, return_terms=True)

    schedule = _schedule(config, config.teacher.epochs, config.teacher.lr)
    _phase("teacher", teacher, teach, data, schedule, metrics, output / TEACHER)
    teacher.eval()
    schedule = _schedule(config, config.epochs, config.lr)
    _phase("student", student, distill, data, schedule, metrics, output / STUDENT)

    metrics.add({"phase": "result", **_measure(config, student, distill, data)})
    title = f"{config.model}, T = {config.timesteps}, seed {config.seed}"
    report.plot_accuracy(metrics, output / report.PLOT, title)
    return metrics


def _phase(
    name: str,
    model: nn.Module,
    objective: Objective,
    data: ImageData,
    schedule: Schedule,
    metrics: report.Metrics,
    path: Path,
) -> None:
    """Train one network with a progress bar; after every epoch test it, save it, note it."""
    per_epoch = schedule.steps(data)
    start = time.perf_counter()
    sums: dict[str, float] = {}
    with require("tqdm").tqdm(total=schedule.epochs * per_epoch, desc=name, unit="step") as bar:
        for step in fit(model, objective, data, schedule):
            for term, value in step.losses.items():
                sums[term] = sums.get(term, 0.0) + value
            bar.update()
            if step.step % per_epoch == 0:
                test = accuracy(model, data.test_images, data.test_targets)
                save_model(model, path)
                losses = {term: value / per_epoch for term, value in sums.items()}
                metrics.add(
                    {
                        "phase": name,
                        "epoch": step.epoch,
                        "step": step.step,
                        "lr": step.lr,
                        **losses,
                        "test_accuracy": test,
                        "seconds": round(time.perf_counter() - start, 3),
                    }
                )
                bar.set_postfix_str(
                    f"epoch {step.epoch}, loss {losses['loss']:.3f}, test {100 * test[-1]:.1f} %"
                )
                sums = {}


def _measure(config: Config, student: nn.Module, distill: Objective, data: ImageData) -> dict:
    """Time of one training step, against the same network over the reference's time loop."""
    count = len(data.train_targets)
    some = slice(0, count, max(1, count // config.batch_size))  # of all classes
    images = data.train_images[some][: config.batch_size]
    targets = data.train_targets[some][: config.batch_size]
    loop = _student(config, data, backend="reference")
    loop.load_state_dict(student.state_dict())
    # Timed in training mode, which moves the running statistics: on a copy.
    fused = copy.deepcopy(student).train()
    difference = (predict(fused, images) - predict(loop, images)).abs().max().item()
    seconds = time_steps([fused, loop.train()], lambda model: distill(model, images, targets)[0])
    return {
        "batch_size": len(images),
        "test_images": len(data.test_images),
        "step_ms": 1e3 * seconds[0],
        "loop_step_ms": 1e3 * seconds[1],
        "max_logit_difference": difference,
        "hardware": _hardware(images.device),
    }


def _schedule(config: Config, epochs: int, lr: float) -> Schedule:
    return Schedule(
        epochs=epochs,
        lr=lr,
        batch_size=config.batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        shift=config.data.shift,
        seed=config.seed,
    )


def _teacher(config: Config, data: ImageData) -> nn.Module:
    teacher = _model(config, data, config.teacher.model)
    if predict(teacher, data.test_images[:1]).dim() != 2:
        raise ValueError(f"must be an ANN, got {config.teacher.model}")
    return teacher


def _student(config: Config, data: ImageData, **changes) -> nn.Module:
    student = _model(config, data, config.model, **asdict(config.neuron) | changes)
    # One image shows now, and not after the teacher's training, that the neurons can run.
    predict(student, data.test_images[:1])
    return student


def _model(config: Config, data: ImageData, name: str, **neuron) -> nn.Module:
    model = create_model(
        name,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        timesteps=config.timesteps,
        **neuron,
    )
    return model.to(data.train_images.device)


def configured(key: str, build, *args, **kwargs):
    """Build what the config describes; what its builder refuses is an error of that key."""
    try:
        return build(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{key}: {error}") from error


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def _prepare(config: Config) -> Path:
    """Make the output directory, rid of an earlier run's files, and write the config there."""
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (output / name).unlink(missing_ok=True)
        write_atomic(output / CONFIG, lambda part: part.write_text(dump(config)))
    except OSError as error:
        raise ConfigError(f"output: {error}") from error
    return output
