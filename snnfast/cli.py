"""The command ``snnfast``: train, profile, info.

Exit status: 0 done, 1 the run failed, 2 the command cannot be run as given, 130 interrupted. What
needs torch is imported by the subcommand that needs it.
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

from snnfast.train import config as recipes

_DTYPES = ("float32", "bfloat16", "float16")


class _Parser(argparse.ArgumentParser):
    """Errors in one line; all options spelled out in full."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default sys.argv[1:]) and return its exit status."""
    parser = _parser()
    try:
        arguments, extra = parser.parse_known_args(argv)
        if extra and arguments.run is _train:
            name = extra[0].partition("=")[0]
            if name.startswith("--"):
                raise recipes.unknown(name[2:], "the command line")
        if extra:
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
        return arguments.run(arguments)
    except recipes.ConfigError as error:
        return _fail(error, 2)
    except SystemExit as stop:  # argparse: --help, --version and its errors
        return stop.code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="snnfast", description="Deep spiking neural networks on PyTorch.")
    parser.add_argument("--version", action="version", version=f"snnfast {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a network from a recipe",
        description="Train what a recipe describes. DIR then holds model.safetensors, "
        "teacher.safetensors, config.toml, metrics.jsonl and accuracy.png, in place of those of an "
        "earlier run. Every key of the recipe is an option.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped one")
    tables = {"": train.add_argument_group("keys")}
    for name, item in recipes.keys():
        table = name.rpartition(".")[0]
        if table not in tables:
            tables[table] = train.add_argument_group(f"table [{table}]")
        tables[table].add_argument(
            f"--{name}",
            metavar="DIR" if name == "output" else item.name.rpartition("_")[2].upper(),
            default=argparse.SUPPRESS,
            help=item.metadata["help"].replace("%", "%%"),
        )
    train.set_defaults(run=_train)

    profile = commands.add_parser(
        "profile",
        help="time and memory of a model's layers in a training step",
        description="Runs training steps of MODEL on random images and shows the time, the bytes "
        "moved and the bytes kept of every layer, against their floor.",
    )
    profile.add_argument("model", metavar="MODEL", help="a name of snnfast.models.list_models()")
    for name, default, help in (
        ("timesteps", 4, "timesteps T"),
        ("batch", 32, "images B"),
        ("image-size", 32, "height and width, pixels"),
        ("channels", 3, "channels of the images"),
        ("classes", 10, "classes"),
    ):
        profile.add_argument(f"--{name}", type=_positive, default=default, metavar="N",
                             help=f"{help}; default {default}")  # fmt: skip
    profile.add_argument("--device", default="auto", help="cpu, cuda; default cuda where there is")
    profile.add_argument("--dtype", default="float32", choices=_DTYPES,
                         help="autocast where not float32; default float32")  # fmt: skip
    profile.add_argument("--output", metavar="DIR", type=Path, help="write profile.png there")
    profile.set_defaults(run=_profile)

    info = commands.add_parser("info", help="what was built, what was not, and why")
    info.set_defaults(run=_info)
    return parser


def _train(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    overrides = {name: given[name] for name, _ in recipes.keys() if name in given}
    config = recipes.load(arguments.recipe, overrides)

    from snnfast.train.loop import TrainingError
    from snnfast.train.report import summary
    from snnfast.train.run import FILES, train

    output = Path(config.output)
    try:
        metrics = train(config)
    except KeyboardInterrupt:
        there = [name for name in FILES if (output / name).exists()]
        held = f"{output} holds {', '.join(there)}" if there else "nothing was written"
        print(f"\ninterrupted: {held}", file=sys.stderr)
        return 130
    except TrainingError as error:
        return _fail(f"train: {error}; the run so far lies in {output}", 1)
    except ImportError as error:
        return _fail(f"train: {error}", 1)
    print(summary(metrics))
    for name in FILES:
        print(output / name)
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from snnfast.train import profile_report

    try:
        lines = profile_report.run(
            arguments.model,
            timesteps=arguments.timesteps,
            batch=arguments.batch,
            image_size=arguments.image_size,
            channels=arguments.channels,
            classes=arguments.classes,
            device=arguments.device,
            dtype=arguments.dtype,
            output=arguments.output,
        )
    except ImportError as error:
        return _fail(f"profile: {error}", 1)
    print(lines)
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _info(arguments: argparse.Namespace) -> int:
    import snnfast

    try:
        print(snnfast.info())
    except ModuleNotFoundError as error:
        return _fail(f"info: {error}; run: pip install torch", 1)
    return 0


def _version() -> str:
    try:
        return metadata.version("snnfast")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(message, status: int) -> int:
    print(f"snnfast: error: {message}", file=sys.stderr)
    return status
