"""Recipes: TOML files read into typed, frozen dataclasses.

A key is a field below; ``twkd.alpha`` is ``alpha`` in the table ``[twkd]``. What is unknown, of the
wrong type or out of range is refused with a ConfigError that names the key. TOML has no null: the
string "none" stands for None where None is allowed.
"""

import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message is one line."""


def key(default, help: str, low=None, above=None, choices=None):
    """A field with its help line and its range: low <= value, above < value, or one of choices."""
    return field(
        default=default,
        metadata={"help": help, "low": low, "above": above, "choices": choices},
    )


@dataclass(frozen=True)
class DataConfig:
    name: str = key("digits", "data set")
    train: int = key(4000, "training images", low=1)
    test: int = key(1000, "test images", low=1)
    shift: int = key(2, "random shift of training images, pixels each way", low=0)


@dataclass(frozen=True)
class NeuronConfig:
    """Arguments of snnfast.nn.LIF; the defaults are the neuron of arXiv 2501.15925 for CIFAR."""

    tau: float = key(2.0, "membrane time constant, timesteps", low=1)
    v_threshold: float = key(1.0, "firing threshold")
    v_reset: float | None = key(0.0, "hard reset to this value; none: soft reset")
    decay_input: bool = key(False, "divide the input by tau, too")
    detach_reset: bool = key(False, "no gradient through the reset")
    surrogate: str = key("sigmoid", "surrogate gradient, by name")
    backend: str | None = key(None, "backend of the neurons; none: chosen for the device")


@dataclass(frozen=True)
class TwkdConfig:
    alpha: float = key(0.2, "weight of the teacher's term", low=0)
    beta: float = key(0.5, "weight of the self-distillation term", low=0)
    temperature: float = key(3.0, "distillation temperature", above=0)
    self_target: str = key("mean", "self-distillation target", choices=("mean", "correct"))
    scale_by_temperature: bool = key(True, "multiply both terms by temperature^2")


@dataclass(frozen=True)
class TeacherConfig:
    model: str = key("ann_digits_cnn", "the teacher's network")
    epochs: int = key(8, "epochs of the teacher", low=1)
    lr: float = key(0.02, "peak learning rate of the teacher", above=0)


@dataclass(frozen=True)
class Config:
    """A whole recipe."""

    output: str = key("runs/digits_twkd", "directory for weights, metrics and plot")
    epochs: int = key(10, "epochs of the student", low=1)
    seed: int = key(0, "seed of weights, order and augmentation", low=0)
    device: str = key("auto", "torch device; auto: cuda where there is one, else cpu")
    model: str = key("digits_cnn", "the student's network")
    timesteps: int = key(4, "timesteps T", low=1)
    batch_size: int = key(64, "images per step", low=2)
    lr: float = key(0.05, "peak learning rate of the student, cosine to 0", above=0)
    momentum: float = key(0.9, "momentum of SGD", low=0)
    weight_decay: float = key(5e-4, "weight decay on conv and linear weights only", low=0)
    data: DataConfig = DataConfig()
    neuron: NeuronConfig = NeuronConfig()
    twkd: TwkdConfig = TwkdConfig()
    teacher: TeacherConfig = TeacherConfig()


def keys(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """All keys with their fields, tables dotted: ("epochs", ...), ("twkd.alpha", ...)."""
    for item in fields(cls):
        if is_dataclass(item.type):
            yield from keys(item.type, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item


def find_recipe(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with snnfast."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if recipe in shipped:
        return shipped[recipe]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"snnfast comes with {', '.join(shipped)}"
    raise ConfigError(f"no recipe at {recipe!r} ({hint})")


def load(recipe: str, overrides: Mapping[str, str] | None = None) -> Config:
    """The Config of a recipe file; ``overrides`` are dotted keys with their values as text."""
    path = find_recipe(recipe)
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    values = dict(_flatten(table, path))
    for name, text in (overrides or {}).items():
        values[name] = _parse(name, text, _field(name, "the command line"))
    return _build(Config, values, "")


def dump(config: Config) -> str:
    """The config as TOML text that :func:`load` reads back."""
    lines, tables = [], []
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            rows = [f"{f.name} = {_toml(getattr(value, f.name))}" for f in fields(value)]
            tables.append("\n".join([f"\n[{item.name}]", *rows]))
        else:
            lines.append(f"{item.name} = {_toml(value)}")
    return "\n".join(lines + tables) + "\n"


def unknown(name: str, where: str) -> ConfigError:
    """The error for a key that does not exist, with the nearest that does."""
    known = [dotted for dotted, _ in keys()]
    last = name.rpartition(".")[2]
    near = [dotted for dotted in known if dotted.rpartition(".")[2] == last]  # the wrong table
    tables = [item.name for item in fields(Config) if is_dataclass(item.type)]
    near = near or difflib.get_close_matches(name, known + tables, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ConfigError(f"unknown key {name!r} in {where}{hint}")


def _field(name: str, where: str) -> Field:
    for dotted, item in keys():
        if dotted == name:
            return item
    raise unknown(name, where)


def _flatten(table: dict, path: Path, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and checked values of a TOML table."""
    tables = {item.name for item in fields(Config) if is_dataclass(item.type)}
    for name, value in table.items():
        if not prefix and name in tables and isinstance(value, dict):
            yield from _flatten(value, path, f"{name}.")
        elif not prefix and name in tables:
            raise ConfigError(f"{name} must be a table [{name}], got {value!r}")
        else:
            yield prefix + name, _check(prefix + name, value, _field(prefix + name, str(path)))


def _kinds(item: Field) -> tuple[type, ...]:
    return typing.get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)


def _parse(name: str, text: str, item: Field):
    """The value that a text on the command line stands for."""
    kind = _kinds(item)[0]
    try:
        if kind is bool:
            value = {"true": True, "false": False}[text.lower()]
        elif text.lower() == "none" and type(None) in _kinds(item):
            value = None
        else:
            value = kind(text)
    except (KeyError, ValueError):
        wanted = "true or false" if kind is bool else f"{kind.__name__}"
        raise ConfigError(f"{name} must be {wanted}, got {text!r}") from None
    return _check(name, value, item)


def _check(name: str, value, item: Field):
    """The value in the field's type, or a ConfigError."""
    kind, *rest = _kinds(item)
    if rest and (value is None or value == "none"):
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} must be {kind.__name__}, got {value!r}")
    if kind is float and math.isnan(value):
        raise ConfigError(f"{name} must be a number, got nan")
    low, above, choices = (item.metadata[limit] for limit in ("low", "above", "choices"))
    if low is not None and value < low:
        raise ConfigError(f"{name} must be >= {low}, got {value}")
    if above is not None and not value > above:
        raise ConfigError(f"{name} must be > {above}, got {value}")
    if choices and value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def _build(cls: type, values: Mapping[str, object], prefix: str):
    arguments = {}
    for item in fields(cls):
        name = prefix + item.name
        if is_dataclass(item.type):
            arguments[item.name] = _build(item.type, values, f"{name}.")
        elif name in values:
            arguments[item.name] = values[name]
    return cls(**arguments)


def _toml(value) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, float):
        return repr(value)  # inf, 1e-05 and 0.1 are TOML as Python writes them
    # A JSON string is a TOML basic string but for the escape of DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
