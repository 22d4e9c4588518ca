"""Recipes: TOML files read into typed, frozen models (pydantic).

A key is a field below; ``twkd.alpha`` is ``alpha`` in the table ``[twkd]``. ``base = "name"`` takes
everything that a recipe does not say from ``name.toml`` beside it or, where there is none, from the
recipe of that name that comes with snnfast. What is unknown, of the wrong type or out of range is
refused with a ConfigError that names the key. TOML has no null: the string "none" stands for None
where None is allowed.
"""

import difflib
import os
import reprlib
import tomllib
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal

try:
    import tomli_w
    from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
    from pydantic.fields import FieldInfo
except ModuleNotFoundError as error:
    raise ImportError(
        f'{error.name} is not installed: pip install "snnfast[train]"', name=error.name
    ) from error

RECIPES = Path(__file__).parent.parent / "recipes"

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**31 - 1)]
Few = Annotated[int, Field(ge=0, le=1024)]
Pixels = Annotated[int, Field(ge=0, le=2**14)]
Several = Annotated[int, Field(ge=2, le=2**31 - 1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _none(value):
    return None if value == "none" else value


def _listed(value):
    """A list on the command line: its values with commas between them."""
    return [item for item in value.split(",") if item] if isinstance(value, str) else value


Names = Annotated[list[str] | None, BeforeValidator(_listed), BeforeValidator(_none)]


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message is one line."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def key(default, help: str):
    """A field with its help line."""
    return Field(default=default, description=help)


def maybe(kind):
    """``kind``, or None, written "none"."""
    return Annotated[kind | None, BeforeValidator(_none)]


class DataConfig(_Table):
    name: str = key("digits", "data set, one of snnfast.data.list_data()")
    root: str = key("data", "directory of the data set's files")
    source: Literal["files", "hub"] = key("files", "local files, or Hugging Face datasets")
    train: Natural = key(0, "training samples; 0: all")
    test: Natural = key(0, "test samples; 0: all")
    augment: Names = key(None, "augmentations, in order; none: the data set's own")
    normalise: maybe(bool) = key(None, "mean and standard deviation; none: the data set's own")
    image_size: Pixels = key(0, "height and width, pixels; 0: the data set's own")
    frames: Natural = key(0, "frames of an event recording; 0: as many as timesteps")
    split_seed: maybe(Natural) = key(None, "draws the 9:1 split of events; none: by name")
    workers: Few = key(2, "processes that decode image files")
    on_error: Literal["stop", "skip"] = key("stop", "at a file that cannot be read")


class NeuronConfig(_Table):
    """Arguments of snnfast.nn.LIF; the defaults are the neuron of arXiv 2501.15925 for CIFAR."""

    tau: Annotated[float, Field(ge=1)] = key(2.0, "membrane time constant, timesteps")
    v_threshold: Rate = key(1.0, "firing threshold")
    v_reset: maybe(float) = key(0.0, "hard reset to this value; none: soft reset")
    decay_input: bool = key(False, "divide the input by tau, too")
    detach_reset: bool = key(False, "no gradient through the reset")
    surrogate: str = key("sigmoid", "surrogate gradient, by name")
    backend: maybe(str) = key(None, "backend of the neurons; none: chosen for the device")


class TwkdConfig(_Table):
    alpha: Weight = key(0.2, "weight of the teacher's term")
    beta: Weight = key(0.5, "weight of the self-distillation term")
    temperature: Rate = key(3.0, "distillation temperature")
    self_target: Literal["mean", "correct"] = key("mean", "self-distillation target")
    scale_by_temperature: bool = key(True, "multiply both terms by temperature^2")
    skip_all_wrong: bool = key(False, "no self term where no step is right")


class TserConfig(_Table):
    alpha: Weight = key(0.2, "weight of the teacher's term")
    lam: Weight = key(0.05, "weight of the entropy")
    temperature: Rate = key(4.0, "distillation temperature")
    ce_temperature: Rate = key(1.0, "temperature of the cross-entropy")
    entropy_temperature: maybe(Rate) = key(None, "temperature of the entropy; none: as temperature")
    convex: bool = key(False, "1 - alpha before the cross-entropy")
    scale_by_temperature: bool = key(True, "multiply the teacher's term by temperature^2")


class TssdConfig(_Table):
    student_steps: Positive = key(2, "T_s, the timesteps of inference; timesteps is T_t")
    alpha: Weight = key(1.0, "weight of the temporal term")
    beta: Weight = key(1.0, "weight of the spatial term")
    temperature: Rate = key(2.0, "distillation temperature")
    ce_steps: Literal["all", "student", "both"] = key("all", "steps that the cross-entropy sees")
    aux_per_step: bool = key(True, "the spatial term per step; false: of the means over time")
    scale_by_temperature: bool = key(False, "multiply both terms by temperature^2")


class TeacherConfig(_Table):
    model: maybe(str) = key("ann_digits_cnn", "the teacher's network; none: no teacher")
    checkpoint: maybe(str) = key(None, "its weights (.safetensors, or a run's directory)")
    epochs: Positive = key(8, "epochs of the teacher, where there is no checkpoint")
    lr: Rate = key(0.02, "peak learning rate of the teacher")
    label_smoothing: Share = key(0.0, "label smoothing of the teacher")
    weight_decay: Weight = key(5e-4, "weight decay of the teacher")


class Config(_Table):
    """A whole recipe."""

    output: Annotated[str, Field(min_length=1)] = key(
        "runs/unnamed", "directory for weights, metrics and plots; default runs/RECIPE-SEED"
    )
    epochs: Positive = key(10, "epochs of the student")
    seed: Natural = key(0, "seed of weights, order and augmentation")
    device: str = key("auto", "torch device; auto: cuda where there is one, else cpu")
    resume: Literal["auto", "none"] = key("none", "auto: go on from the checkpoint in output")
    model: str = key("digits_cnn", "the student's network")
    aux_head: maybe(str) = key(None, "stage with an auxiliary classifier, for TSSD")
    timesteps: Positive = key(4, "timesteps T")
    objective: Literal["mean_ce", "step_ce", "twkd", "tser", "tssd"] = key("twkd", "the loss")
    label_smoothing: Share = key(0.0, "label smoothing of the student")
    mixup: Weight = key(0.0, "alpha of Mixup's beta distribution; 0: none")
    batch_size: Several = key(64, "samples per step, over all ranks")
    accumulate: Positive = key(1, "parts of a batch, one after the other")
    lr: Rate = key(0.05, "peak learning rate of the student")
    schedule: Literal["cosine", "step"] = key("cosine", "cosine to 0, or times gamma by steps")
    warmup: Natural = key(0, "epochs of a linear warm-up")
    lr_epochs: Positive = key(30, "schedule step: epochs between the steps")
    lr_gamma: Rate = key(0.1, "schedule step: factor of a step")
    momentum: Weight = key(0.9, "momentum of SGD")
    weight_decay: Weight = key(5e-4, "weight decay on conv and linear weights only")
    clip_norm: Weight = key(0.0, "largest norm of the gradient; 0: any")
    ema: Share = key(0.0, "decay of the averaged weights, per step; 0: none")
    amp: Literal["none", "bf16", "fp16"] = key("none", "autocast")
    channels_last: bool = key(False, "channels-last weights and images")
    packed_spikes: bool = key(True, "keep spikes as bits for the weight gradients")
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = key(
        "none", "torch.compile of the network; reduce-overhead: with CUDA graphs"
    )
    cuda_graph: bool = key(False, "a step of training as one CUDA graph, after a few without")
    time_step: bool = key(False, "at the end, time a step against the reference's time loop")
    tensorboard: bool = key(True, "write for TensorBoard, too, where it is installed")
    monitor: bool = key(False, "rates, potentials and gradients of every layer among the metrics")
    threads: Few = key(0, "CPU threads; 0: torch's choice")
    checkpoint_every: Natural = key(0, "steps between checkpoints; 0: at the end of epochs only")
    data: DataConfig = DataConfig()
    neuron: NeuronConfig = NeuronConfig()
    twkd: TwkdConfig = TwkdConfig()
    tser: TserConfig = TserConfig()
    tssd: TssdConfig = TssdConfig()
    teacher: TeacherConfig = TeacherConfig()


def keys(cls: type[_Table] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys with their fields, tables dotted: ("epochs", ...), ("twkd.alpha", ...)."""
    for name, item in cls.model_fields.items():
        if _is_table(item):
            yield from keys(item.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, item


def list_recipes() -> dict[str, Path]:
    """The recipes that come with snnfast, by name."""
    return {file.stem: file for file in sorted(RECIPES.glob("[!_]*.toml"))}


def find_recipe(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with snnfast."""
    if os.path.isfile(recipe):  # unlike Path.is_file, False for what no path can be
        return Path(recipe)
    shipped = list_recipes()
    if recipe in shipped:
        return shipped[recipe]
    near = difflib.get_close_matches(Path(recipe).stem[:99], shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"snnfast comes with {', '.join(shipped)}"
    raise ConfigError(f"no recipe at {_short(recipe)} ({hint})")


def load(recipe: str, overrides: Mapping[str, str] | None = None) -> Config:
    """The Config of a recipe file; ``overrides`` are dotted keys with their values as text. Without
    an ``output`` it is ``runs/RECIPE-SEED``."""
    path = find_recipe(recipe)
    table = _read(path, ())
    for name, text in (overrides or {}).items():
        *parents, last = name.split(".")
        inner = table
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = _parse(name, text)
    config = build(table)
    if "output" in table:
        return config
    return config.model_copy(update={"output": f"runs/{path.stem}-{config.seed}"})


def build(table: dict) -> Config:
    """A Config from nested dicts of values. Raises ConfigError."""
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError(_message(error.errors()[0])) from None


def dump(config: Config) -> str:
    """The config as TOML text that :func:`load` reads back."""
    return tomli_w.dumps(_named(config.model_dump()))


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which two configs differ."""
    mine, others = flat(one), flat(other)
    return [name for name in mine if mine[name] != others[name]]


def flat(config: Config) -> dict[str, object]:
    """All values by dotted key: {"epochs": ..., "twkd.alpha": ...}."""
    return {name: attrgetter(name)(config) for name, _ in keys()}


def unknown(name: str, where: str) -> ConfigError:
    """The error for a key that does not exist, with the nearest that do."""
    known = [dotted for dotted, _ in keys()]
    tables = [own for own, item in Config.model_fields.items() if _is_table(item)]
    table, _, last = (f"{name}." if name in tables else name).rpartition(".")
    if table in tables:  # what another table calls the same is another thing
        known = [dotted for dotted in known if dotted.startswith(f"{table}.")]
        ends = {dotted.rpartition(".")[2]: [dotted] for dotted in known}
    elif table:
        ends, last = {dotted: [dotted] for dotted in known}, name
    else:
        ends = {own: [own] for own in tables + [dotted for dotted in known if "." not in dotted]}
        for dotted in known:
            end = dotted.rpartition(".")[2]
            if ends.get(end) != [end]:  # a table's key may be another's, too
                ends.setdefault(end, []).append(dotted)
    near = [key for end in difflib.get_close_matches(last[:99], ends, n=1) for key in ends[end]]
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    if not near and table in tables:
        hint = f" ([{table}] has {', '.join(ends)})"
    return ConfigError(f"unknown key {_short(name)} in {where}{hint}")


def _is_table(item: FieldInfo) -> bool:
    return isinstance(item.annotation, type) and issubclass(item.annotation, _Table)


def _read(path: Path, inside: tuple[Path, ...]) -> dict:
    """The values of a recipe over those of its base; unknown keys are refused with their file."""
    if path in inside:
        raise ConfigError(f"{path}: it is its own base")
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (OSError, ValueError) as error:  # ValueError: not TOML, not UTF-8, too many digits
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply") from error
    base = table.pop("base", None)
    if base is not None and (not isinstance(base, str) or os.path.basename(base) != base):
        raise ConfigError(f"{path}: base must be the name of a recipe, got {_short(base)}")
    if len(inside) > 20:
        raise ConfigError(f"{path}: it is the base of a base, and so on, more than 20 times")
    known = {dotted for dotted, _ in keys()}
    for name, value in table.items():
        is_table = isinstance(value, dict) and name in Config.model_fields
        for dotted in [f"{name}.{inner}" for inner in value] if is_table else [name]:
            if dotted not in known and dotted not in Config.model_fields:
                raise unknown(dotted, str(path))
    if base is None:
        return table
    merged = _read(_find_base(base, path), (*inside, path))
    for name, value in table.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = merged[name] | value if both else value
    return merged


def _find_base(base: str, path: Path) -> Path:
    """The recipe that the one at ``path`` calls its base."""
    beside, shipped = path.parent / f"{base}.toml", RECIPES / f"{base}.toml"
    if os.path.isfile(beside) and not (beside == path and os.path.isfile(shipped)):
        return beside
    return shipped if os.path.isfile(shipped) else find_recipe(base)


def _short(value) -> str:
    """``repr``, of any length and depth."""
    try:
        return _SHORTEN.repr(value)
    except ValueError:  # an int of more digits than Python writes
        return "a number of thousands of digits"


_SHORTEN = reprlib.Repr()
_SHORTEN.maxstring = _SHORTEN.maxother = 120


def _parse(name: str, text: str):
    """The value that a text on the command line stands for."""
    item = dict(keys()).get(name)
    if item is None:
        raise unknown(name, "the command line")
    kind = Annotated[item.annotation, *item.metadata] if item.metadata else item.annotation
    try:
        return TypeAdapter(kind).validate_python(text, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(_message(first | {"loc": (*name.split("."),)})) from None


def _message(error: dict) -> str:
    """One line for what pydantic refused: "epochs must be ..., got ..."."""
    where = ".".join(str(part) for part in error["loc"] if part in _PARTS)
    if error["type"] == "extra_forbidden":
        return str(unknown(where, "the config"))
    if error["type"] == "model_type":
        return f"{where} must be a table [{where}], got {_short(error['input'])}"
    text = error["msg"]
    for wordy, short in _SHORT.items():
        text = text.replace(wordy, short)
    return f"{where} {text}, got {_short(error['input'])}"


_PARTS = {part for dotted, _ in keys() for part in dotted.split(".")}
_SHORT = {
    "Input should be a finite number": "must be a number",
    "Input should be": "must be",
    "greater than or equal to": ">=",
    "less than or equal to": "<=",
    "greater than": ">",
    "less than": "<",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    ", unable to interpret input": "",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "String should have at least 1 character": "must not be empty",
}


def _named(value):
    """The same nested values with "none" for None."""
    if isinstance(value, dict):
        return {name: _named(inner) for name, inner in value.items()}
    return "none" if value is None else value


__all__ = [
    "Config",
    "ConfigError",
    "build",
    "differences",
    "dump",
    "find_recipe",
    "flat",
    "keys",
    "list_recipes",
    "load",
    "unknown",
]
