"""One run: data, teacher, student, checkpoints, evaluation, report."""

import contextlib
import copy
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from snnfast.data import DataError
from snnfast.models import exported_weights, set_process_group
from snnfast.packages import require
from snnfast.train import build, checkpoint, folder, metrics, preprocess, progress, watch
from snnfast.train.checkpoint import EMA, LATEST, STUDENT, TEACHER, CheckpointError
from snnfast.train.config import Config, ConfigError, differences, dump, flat, load
from snnfast.train.distributed import RankError, World, code, digest_of, in_a_line, joined
from snnfast.train.evaluate import accuracy, logits_of, time_steps
from snnfast.train.folder import FILES, METRICS, PLOT
from snnfast.train.load import CONFIG, SHAPE
from snnfast.train.loop import Options, Step, Trainer, TrainingError, show, spiking, still
from snnfast.train.objective import inference_steps, student_objective, teacher_objective
from snnfast.train.stop import Interrupted, Stop, Stuck

# What may change between a checkpoint and the run that goes on from it.
FREE = {"output", "device", "resume", "threads", "checkpoint_every", "tensorboard",
        "monitor", "data.root", "data.workers"}  # fmt: skip
# What may differ between ranks.
OWN = FREE - {"resume", "checkpoint_every"}


def train(config: Config, *, overwrite: bool = False) -> metrics.Metrics:
    """Run a recipe and leave ``FILES`` and a checkpoint in ``config.output``.

    With ``resume = "auto"`` it goes on from the checkpoint there, exactly: on a CPU with the same
    number of threads to the same bits. Otherwise the directory must not hold a run, or it is
    replaced where ``overwrite`` says so. Under torchrun all ranks train together and rank 0 writes.

    Raises ConfigError before any work where the config names something that is not there, and where
    ``config.output`` holds a run or files that are none, or is in use by another run;
    CheckpointError for a checkpoint that is damaged, foreign or cannot be written, TrainingError
    where a loss is not finite, DataError for a file that cannot be read, ImportError where an
    optional package is missing, and Interrupted (a KeyboardInterrupt) after Ctrl-C or SIGTERM, when
    it has saved.
    """
    require("tqdm")
    require("matplotlib")
    if config.threads:
        torch.set_num_threads(config.threads)
    device = build.choose_device(config.device)
    notes = {name: value for name, value in flat(config).items() if name not in OWN}
    remedy = f"to go on from its last checkpoint: {folder.go_on(Path(config.output))}"
    try:
        with Stop() as stop, joined(device.type, notes | {"code": code()}, remedy) as world:
            if world.size > 1 and device.type == "cuda":
                device = torch.device("cuda", world.local_rank)
            return _Run(config, device, world, stop, overwrite).train()
    except RankError as error:
        raise TrainingError(str(error)) from error


class _Run:
    """What the phases of a run share."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        world: World,
        interrupted: Stop,
        overwrite: bool = False,
    ):
        self.config, self.device, self.world = config, device, world
        self.interrupted = interrupted
        self.output = Path(config.output)
        self.found, self.needs, self.layers = None, {}, None
        self.resume, self.overwrite = config.resume == "auto", overwrite
        watch.check(config)
        if world.main:  # before the work of loading
            folder.check_free(self.output)
            folder.check(self.output, resume=self.resume, overwrite=overwrite)
        self.objective = build.configured(config.objective, student_objective, config)
        if not world.main:
            world.wait()  # what loading keeps on the disk, rank 0 makes
        self.data = interrupted.watch(build.load_data(config, device))
        self.preprocess = preprocess.of_data(self.data)
        if world.main:
            world.wait()
        self.teacher = build.teacher(config, self.data, device)
        self.student = build.student(config, self.data, device)
        if self.teacher is not None and config.teacher.checkpoint is not None:
            build.load_teacher(self.teacher, Path(config.teacher.checkpoint))

    def _loaded(self) -> dict[str, object]:
        """What no rank may have loaded other than the others."""
        data, notes = self.data, {}
        notes |= {"number of training samples": len(data.train)}
        notes |= {"number of test samples": len(data.test)}
        notes |= {f"data's {name}": getattr(data, name) for name in (*SHAPE, "classes")}
        if self.teacher is not None and self.config.teacher.checkpoint is not None:
            notes["teacher.checkpoint"] = f"one of digest {digest_of(self.teacher.state_dict())}"
        return notes

    def _start(self) -> str:
        """Where the run begins, in words; no rank may begin elsewhere."""
        if not self.found:
            return "no checkpoint"
        at, latest = self.found[1]["trainer"], self.output / checkpoint.FOLDER / LATEST
        return (
            f"{at['name']} at epoch {at.get('epoch')}, step {at.get('done')} "
            f"(digest {checkpoint.digest(latest)[:12]})"
        )

    def train(self) -> metrics.Metrics:
        with contextlib.ExitStack() as claim:
            self.world.agree(self._loaded())
            if self.overwrite:
                self._try()
            if self.world.main:
                if self.resume and not folder.marked(self.output):
                    self._checkpoint()  # of a run without a marker: its checkpoint is the claim
                claim.enter_context(
                    folder.claimed(self.output, resume=self.resume, overwrite=self.overwrite)
                )
            self.world.wait()
            self.found = self._checkpoint() if self.resume else None
            start = self._start()
            self.world.agree({"resume": start})
            if self.resume and self.world.main:
                found = f"goes on from {start}" if self.found else f"{start}, begins anew"
                print(f"resume: {found} ({self.output / checkpoint.FOLDER})", file=sys.stderr)
            self.interrupted.begin()
            rows, path = self._prepare(), self.output / METRICS
            with _written(path):
                self.metrics = metrics.Metrics(path, rows, write=self.world.main)
                if self.config.tensorboard:
                    self.metrics.to_tensorboard()
            return self._train()

    def _train(self) -> metrics.Metrics:
        config = self.config
        if self.world.main:
            head = progress.headline(config, self.data, self.student, self.device, self.world)
            print(head, file=sys.stderr)
        if self.teacher is not None:
            self._teach()
            self.teacher.eval().requires_grad_(False)
        self._phase(self.student_trainer())
        result = {"phase": "result", "test_samples": len(self.data.test)}
        if config.time_step and spiking(self.student) and self.world.size == 1:
            result |= self._time_step()
        with _written(self.metrics.path):
            self.metrics.add(result)
        if self.world.main:
            title = f"{config.model}, T = {config.timesteps}, seed {config.seed}"
            with _written(self.output / PLOT):
                metrics.plot_accuracy(self.metrics, self.output / PLOT, title)
        self.world.wait()
        return self.metrics

    def _try(self) -> None:
        """What may fail at the start of training, before anything of an earlier run goes."""
        for split in (self.data.train, self.data.test):
            next(split.batches([torch.arange(min(2, len(split)))]), None)
        if self.world.size == 1:  # over ranks a trainer is a collective work
            self.student_trainer()

    def _teach(self) -> None:
        """The teacher's weights: given, those of the run that goes on, or trained now."""
        path = self.output / TEACHER
        if self.found and self.found[1]["trainer"]["name"] == "student":
            checkpoint.fill(self.teacher, checkpoint.load_weights(path), path)
        else:
            if self.config.teacher.checkpoint is None:
                self._phase(self.teacher_trainer())
            if self.world.main:
                self._write({TEACHER: self.teacher.state_dict()})
        if self.world.main:
            self.needs = {TEACHER: checkpoint.digest(path)}

    def _phase(self, trainer: Trainer) -> None:
        """Train one network with a progress bar; after every epoch test it, note it, save it."""
        if self.found:
            self._restore(trainer)
            if self.world.main and trainer.done == len(trainer.batches):
                self._write(self._weights(trainer))  # of this epoch: nothing else would mend them
        self._warm_up(trainer)
        every, start = self.config.checkpoint_every, time.perf_counter()
        bar = progress.bar(trainer.name, trainer, self.world)
        with watch.layers(self.config, trainer) as self.layers, bar as bar:
            try:
                for step in trainer.steps():
                    bar.step()
                    if step.last:
                        self._test(trainer, step, time.perf_counter() - start)
                        bar.tested(self.metrics.rows[-1])
                    stop = self._asked_to_stop(step)
                    if step.last or stop or (every and step.step % every == 0):
                        self._save(trainer)
                    if stop:
                        raise Interrupted(_after(trainer))
            except Stuck:
                # All ranks would have to save, and in a test the epoch's row is not there yet.
                if self.world.size > 1 or trainer.done == len(trainer.batches):
                    raise
                self._save(trainer)
                raise Interrupted(_after(trainer)) from None

    def _warm_up(self, trainer: Trainer) -> None:
        """Compile a phase's kernels before its first step, which where that fails does it."""
        start = time.perf_counter()
        try:
            count = trainer.warm_up()
        except Exception as error:
            reason = in_a_line(error)
            warnings.warn(f"warm_up: kernels compile in the first step: {reason}", stacklevel=2)
            return
        if count and self.world.main:
            seconds = time.perf_counter() - start
            print(f"{trainer.name}: {count} kernels compiled in {seconds:.1f} s", file=sys.stderr)

    def _asked_to_stop(self, step: Step) -> bool:
        """All ranks alike; they seldom ask one another where that waits for a GPU."""
        if self.world.size == 1:
            return self.interrupted()
        now = self.device.type != "cuda" or step.last or step.step % 20 == 0
        return now and self.world.any(self.interrupted(), self.device)

    def _test(self, trainer: Trainer, step: Step, seconds: float) -> None:
        """Test a network at the end of an epoch; its row of metrics and its weights."""
        trainer.check()
        model, student = trainer.model, trainer.name == "student"
        test = self.data.test, self.data.prepare, inference_steps(self.config) if student else None
        row = {"phase": trainer.name, "epoch": step.epoch, "step": step.step, "lr": step.lr}
        row |= trainer.means() | (self.layers.scalars() if self.layers else {})
        row["test_accuracy"] = accuracy(model, *test, world=self.world)
        if trainer.average:
            with trainer.average.applied(model):
                row["ema_accuracy"] = accuracy(model, *test, world=self.world)
        loading, stepping = trainer.seconds["loading"], trainer.seconds["step"]
        row |= {
            "seconds": round(seconds, 3),
            "images": int(trainer.images),
            "loading_seconds": round(loading, 3),
            "step_seconds": round(stepping, 3),
            "skipped_files": len(getattr(self.data.train, "skipped", ())),
        }
        if self.layers:
            self.layers.clear()  # of this epoch and its test
        with _written(self.metrics.path):
            self.metrics.add(row | progress.memory(self.device))
        if self.world.main:
            self._write(self._weights(trainer))

    def _weights(self, trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
        """What is left of a network, by file."""
        model, student = trainer.model, trainer.name == "student"
        weights = {STUDENT if student else TEACHER: exported_weights(model.state_dict())}
        if trainer.average:
            weights[EMA] = exported_weights(trainer.average.weights(model))
        return weights

    def _write(self, weights: dict[str, dict[str, torch.Tensor]]) -> None:
        """Write weights, where they are not there already."""
        for name, tensors in weights.items():
            path, blob = self.output / name, checkpoint.pack_weights(tensors, self._shape())
            with _written(path):
                if not path.is_file() or path.read_bytes() != blob:
                    checkpoint.write_atomic(path, lambda part, blob=blob: part.write_bytes(blob))

    def _shape(self) -> dict[str, str]:
        """What the config leaves to the data, for who loads the weights without them."""
        found = {name: getattr(self.data, name) for name in SHAPE}
        found[preprocess.KEY] = self.preprocess.model_dump()
        return {"shape": json.dumps(found)}

    def _save(self, trainer: Trainer) -> None:
        state = {
            "config": dump(self.config),
            "rows": self.metrics.rows,
            "trainer": trainer.state(),
        }
        if self.world.main:
            weights = {STUDENT: trainer.model.state_dict()}
            if trainer.average:
                weights[EMA] = trainer.average.weights(trainer.model)
            checkpoint.save_checkpoint(self.output, weights, state, self.needs)
        self.world.wait()

    def _restore(self, trainer: Trainer) -> None:
        weights, state = self.found
        self.found = None
        home = self.output / checkpoint.FOLDER
        checkpoint.fill(trainer.model, weights[STUDENT], home)
        if trainer.average and EMA not in weights:
            raise CheckpointError(f"{home}: it has no {EMA}")
        try:
            if trainer.average:
                trainer.average.load(weights[EMA])
            trainer.restore(state["trainer"])
            tested = trainer.epoch + (trainer.done == len(trainer.batches))
            rows = len(self.metrics.of(trainer.name))
            if rows != tested:
                raise ValueError(f"{rows} rows of metrics for {tested} epochs")
        except Exception as error:  # of a state that is not ours, anything
            raise CheckpointError(f"{home}: its state does not fit: {error!r}") from error

    def _checkpoint(self):
        """The checkpoint in the output directory, None where there is none; refuses one that was
        written with another recipe."""
        found = checkpoint.load_checkpoint(self.output)
        if found is None:
            return None
        home = self.output / checkpoint.FOLDER
        try:
            if not isinstance(found[1], dict):
                raise ValueError("it is no dict")
            text, rows, at = (found[1][key] for key in ("config", "rows", "trainer"))
            if not isinstance(rows, int | list) or not isinstance(at, dict):
                raise ValueError("its rows or its trainer are of another kind")
            if at["name"] not in ("teacher", "student"):
                raise ValueError("its phase is of another kind")
            if isinstance(rows, list):
                metrics.checked(rows)
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / CONFIG
                file.write_text(text)
                before = load(str(file))
        except Exception as error:  # of a state that is not ours, anything
            reason = in_a_line(error)
            raise CheckpointError(f"{home}: not a checkpoint of a run: {reason}") from error
        changed = [name for name in differences(before, self.config) if name not in FREE]
        if changed:
            raise CheckpointError(
                f"{home}: written with another {', '.join(changed)}; go on with the same, or train "
                "into another output"
            )
        return found

    def _prepare(self) -> list[dict]:
        """Rid the output directory of an earlier run's files, and write the config there.
        Returns the rows of the metrics that the checkpoint knows of."""
        rows = self.found[1]["rows"] if self.found else []
        if isinstance(rows, int):  # of a checkpoint of version 0.1.0
            count, path = rows, self.output / METRICS
            rows = metrics.read(path)[:count]
            if len(rows) < count:
                raise CheckpointError(f"{path}: damaged: {len(rows)} of {count} rows can be read")
        self.world.wait()
        if self.world.main:
            try:
                if not self.found:
                    folder.clear(self.output)
                text = dump(self.config)
                seen = self.preprocess.model_dump_json(indent=1)
                for name, content in ((CONFIG, text), (preprocess.FILE, seen)):
                    checkpoint.write_atomic(
                        self.output / name, lambda part, content=content: part.write_text(content)
                    )
            except OSError as error:
                raise ConfigError(f"output: {error}") from error
        return rows

    def teacher_trainer(self) -> Trainer:
        """What trains the teacher, from its first step."""
        own = self.config.teacher
        options = self._options(
            epochs=own.epochs, lr=own.lr, weight_decay=own.weight_decay,
            ema=0.0, mixup=0.0, packed_spikes=False,
        )  # fmt: skip
        return self._trainer("teacher", self.teacher, teacher_objective(self.config), options)

    def student_trainer(self) -> Trainer:
        """What trains the student, from its first step."""
        return self._trainer(
            "student", self.student, self.objective, self._options(),
            teacher=self.teacher, frames=self.config.timesteps,
        )  # fmt: skip

    def _trainer(self, name: str, model: nn.Module, aim, options: Options, **more) -> Trainer:
        set_process_group(model, self.world.group)
        device, world = self.device, self.world
        return Trainer(name, model, aim, self.data, options, device=device, world=world, **more)

    def _options(self, **changes) -> Options:
        names = Options.__dataclass_fields__
        return Options(**{name: getattr(self.config, name) for name in names} | changes)

    def _time_step(self) -> dict:
        """Time of one training step, against the same network over the reference's time loop."""
        count = len(self.data.train)
        some = torch.arange(0, count, max(1, count // self.config.batch_size))  # of all classes
        images, targets = next(self.data.train.batches([some[: self.config.batch_size]]))
        images = show(self.data.prepare(images, seed=0), self.config.timesteps)
        loop = build.student(self.config, self.data, self.device, backend="reference")
        loop.load_state_dict(self.student.state_dict())
        # Timed in training mode, which moves the running statistics: on a copy.
        fused = copy.deepcopy(self.student)
        difference = (logits_of(fused.eval(), images) - logits_of(loop.eval(), images)).abs().max()

        def loss_of(model):
            with torch.no_grad():
                taught = self.teacher(still(images)) if self.teacher else None
            return self.objective(model(images), targets, taught)[0]

        seconds = time_steps([fused.train(), loop.train()], loss_of)
        return {
            "batch_size": len(targets),
            "step_ms": 1e3 * seconds[0],
            "loop_step_ms": 1e3 * seconds[1],
            "max_logit_difference": difference.item(),
            "hardware": _hardware(self.device),
        }


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """A file that cannot be written is a CheckpointError that names it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}; the one before it is untouched"
        ) from error


def _after(trainer: Trainer) -> str:
    step = trainer.epoch * len(trainer.batches) + trainer.done
    return f"after step {step} (epoch {trainer.epoch + 1})"


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


__all__ = ["CONFIG", "FILES", "DataError", "Interrupted", "TrainingError", "train"]
