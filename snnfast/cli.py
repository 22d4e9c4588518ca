"""The command ``snnfast``: train, eval, predict, export, report, profile, info.

Exit status: 0 done, 1 the run failed, 2 the command cannot be run as given, 130 interrupted. What
needs torch is imported by the subcommand that needs it.
"""

import argparse
import os
import sys
from pathlib import Path

from snnfast import __version__, keep_memory

_DTYPES = ("float32", "bfloat16", "float16")
_ALSO = {"teacher.checkpoint": "--teacher", "data.image_size": "--image_size"}


class _Parser(argparse.ArgumentParser):
    """Errors in one line; all options spelled out in full."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Options with - for _ or _ for -, as in other programs."""
        return super().parse_known_args([self._spelled(word) for word in args], namespace)

    def _spelled(self, word):
        if not word.startswith("--"):
            return word
        name, equals, value = word.partition("=")
        known = {option.replace("-", "_"): option for option in self._option_string_actions}
        return known.get(name.replace("-", "_"), name) + equals + value

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default sys.argv[1:]) and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if "RANK" in os.environ:  # the end of another rank is told in a line, not in frames of C++
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        parser = _parser(argv)
        arguments, extra = parser.parse_known_args(argv)
        if extra and arguments.run is _train and extra[0].startswith("--"):
            return _fail(_unknown(extra[0].partition("=")[0][2:]), 2)
        if extra:
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
        keep_memory()  # the process is ours
        return arguments.run(arguments)
    except ImportError as error:
        return _fail(f"{argv[0] if argv else 'snnfast'}: {error}", 1)
    except SystemExit as stop:  # argparse: --help, --version and its errors
        return stop.code


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="snnfast", description="Deep spiking neural networks on PyTorch.")
    parser.add_argument("--version", action="version", version=f"snnfast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a network from a recipe",
        description="Train what a recipe describes. DIR then holds model.safetensors, "
        "ema.safetensors and teacher.safetensors where there are such, config.toml, "
        "preprocess.json, metrics.jsonl, accuracy.png and a checkpoint. Every key of the recipe is "
        "an option; its default stands where neither says it. A recipe is a TOML file of keys; "
        'with base = "NAME" it takes what it does not say from NAME.toml beside it, or from the '
        "recipe of that name that comes with snnfast.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped one")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is in output")
    if argv[:1] == ["train"]:  # the recipes' schema is not everybody's to wait for
        _add_keys(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "eval",
        help="accuracy at every number of timesteps, early exit and energy of a trained run",
        description="Evaluate the network in DIR on its test data: accuracy at every number of "
        "timesteps out of one pass, early exit, firing rates, synaptic operations and energy of "
        "every layer. Prints tables and writes eval.json and plots into DIR.",
    )
    evaluate.add_argument("directory", metavar="DIR", type=Path, help="the output of a run")
    evaluate.add_argument("--timesteps", metavar="1..T", type=_range,
                          help="T, or a range from 1; default as trained")  # fmt: skip
    evaluate.add_argument("--weights", choices=("model", "ema"), default="model")
    evaluate.add_argument("--data.root", dest="root", metavar="DIR", help="where the data lies now")
    evaluate.add_argument("--device", default="auto", help="cpu, cuda; default cuda where there is")
    evaluate.set_defaults(run=_eval)

    predict = commands.add_parser(
        "predict",
        help="classes of image files by a trained run",
        description="Show image files to the network in RUN, each as the images it was trained on, "
        "and print its class, the network's confidence and the timestep at which it was sure.",
    )
    predict.add_argument("directory", metavar="RUN", type=Path, help="the output of a run")
    predict.add_argument("images", metavar="IMAGE", nargs="+", type=Path, help="image files")
    predict.add_argument("--threshold", metavar="P", type=_probability, default=0.9,
                         help="confidence at which the network stops; default 0.9")  # fmt: skip
    predict.add_argument("--weights", choices=("model", "ema"), default="model")
    predict.add_argument("--device", default="auto", help="cpu, cuda; default cuda where there is")
    predict.set_defaults(run=_predict)

    export = commands.add_parser(
        "export",
        help="a trained run as ONNX, NIR or an archive of torch.export",
        description="Write the network in RUN, weights and all, as a file for other programs. It "
        "reads images, which it is shown for all timesteps, or the frames of a sequence.",
    )
    export.add_argument("directory", metavar="RUN", type=Path, help="the output of a run")
    export.add_argument("--format", dest="form", choices=("onnx", "nir", "pt2"), required=True)
    export.add_argument("--output", metavar="FILE", type=Path, help="default ./RUN.FORMAT")
    export.add_argument("--step", action="store_true",
                        help="one timestep, with its states; onnx and pt2")  # fmt: skip
    export.add_argument("--batch", metavar="N", type=_positive, default=1,
                        help="images at a time; default 1")  # fmt: skip
    export.add_argument("--weights", choices=("model", "ema"), default="model")
    export.set_defaults(run=_export)

    report = commands.add_parser(
        "report",
        help="compare runs over their seeds",
        description="Compare runs: those that differ in the seed and the output alone are one row, "
        "with mean and spread. Writes Markdown and the curves.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="outputs of runs")
    report.add_argument("--output", metavar="DIR", type=Path, default=Path("report"),
                        help="for report.md and curves.png; default ./report")  # fmt: skip
    report.set_defaults(run=_report)

    profile = commands.add_parser(
        "profile",
        help="time and memory of a model's layers in a training step",
        description="Runs training steps of MODEL on random images and shows the time, the bytes "
        "moved and the bytes kept of every layer, against their floor.",
    )
    profile.add_argument("model", metavar="MODEL", help="a name of snnfast.models.list_models()")
    for name, default, help in (
        ("timesteps", 4, "timesteps T"),
        ("batch_size", 32, "images B"),
        ("image_size", 32, "height and width, pixels"),
        ("channels", 3, "channels of the images"),
        ("classes", 10, "classes"),
    ):
        also = ["--data.image_size"] if name == "image_size" else []  # as train has it
        profile.add_argument(f"--{name}", *also, dest=name, type=_positive, default=default,
                             metavar="N", help=f"{help}; default {default}")  # fmt: skip
    profile.add_argument("--batch", dest="batch_size", type=_positive, default=argparse.SUPPRESS,
                         help=argparse.SUPPRESS)  # fmt: skip
    profile.add_argument("--device", default="auto", help="cpu, cuda; default cuda where there is")
    profile.add_argument("--dtype", default="float32", choices=_DTYPES,
                         help="autocast where not float32; default float32")  # fmt: skip
    profile.add_argument("--output", metavar="DIR", type=Path, help="write profile.png there")
    profile.set_defaults(run=_profile)

    info = commands.add_parser("info", help="what was built, what was not, and why")
    info.set_defaults(run=_info)
    return parser


def _add_keys(train: argparse.ArgumentParser) -> None:
    """Every key of a recipe as an option."""
    from snnfast.train import config as recipes

    tables = {"": train.add_argument_group("keys")}
    for name, item in recipes.keys():
        table = name.rpartition(".")[0]
        if table not in tables:
            tables[table] = train.add_argument_group(f"table [{table}]")
        tables[table].add_argument(
            f"--{name}",
            *([_ALSO[name]] if name in _ALSO else []),
            dest=name,
            metavar="DIR" if name == "output" else name.rpartition("_")[2].upper(),
            default=argparse.SUPPRESS,
            help=_with_default(item).replace("%", "%%"),
        )


def _with_default(item) -> str:
    """What a key is, and its value in a recipe that does not say."""
    if "default" in item.description:
        return item.description
    shown = {None: "none", True: "true", False: "false"}
    default = item.default if type(item.default) in (int, float, str) else shown[item.default]
    return f"{item.description}; default {default}"


def _unknown(name: str) -> Exception:
    from snnfast.train import config as recipes

    return recipes.unknown(name, "the command line")


def _train(arguments: argparse.Namespace) -> int:
    from snnfast.train import config as recipes

    given = vars(arguments)
    overrides = {name: given[name] for name, _ in recipes.keys() if name in given}
    try:
        config = recipes.load(arguments.recipe, overrides)
    except recipes.ConfigError as error:
        return _fail(error, 2)

    from snnfast.train.checkpoint import CheckpointError, resumable
    from snnfast.train.folder import FILES, go_on
    from snnfast.train.loop import TrainingError
    from snnfast.train.metrics import summary
    from snnfast.train.run import DataError, Interrupted, train

    output = Path(config.output)
    again = f"to go on: {go_on(output)}"
    try:
        metrics = train(config, overwrite=arguments.overwrite)
    except Interrupted as stop:
        print(f"\ninterrupted {stop}, saved; {again}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        hint = again if resumable(output) else "nothing was saved"
        print(f"\ninterrupted; {hint}", file=sys.stderr)
        return 130
    except (recipes.ConfigError, CheckpointError) as error:
        return _fail(error, 2)
    except (TrainingError, DataError) as error:
        hint = f"the last checkpoint is in {output / 'checkpoint'}, {again}"
        hint = hint if resumable(output) else "there is no checkpoint yet"
        return _fail(f"train: {error}; {hint}", 1)
    if metrics.write:
        print(summary(metrics))
        for name in FILES:
            if (output / name).exists():
                print(output / name)
    return 0


def _of_a_run(command: str, *failures: type[Exception]):
    """For a subcommand that reads a run: what of it cannot be read ends with 2, ``failures`` with
    1."""

    def decorate(function):
        def run(arguments: argparse.Namespace) -> int:
            from snnfast.train.checkpoint import CheckpointError
            from snnfast.train.config import ConfigError

            try:
                return function(arguments)
            except (ConfigError, CheckpointError) as error:
                return _fail(f"{command}: {error}", 2)
            except failures as error:
                return _fail(f"{command}: {error}", 1)

        return run

    return decorate


@_of_a_run("eval")
def _eval(arguments: argparse.Namespace) -> int:
    from snnfast.train import eval_run

    found = eval_run.run(
        arguments.directory,
        timesteps=arguments.timesteps,
        weights=arguments.weights,
        root=arguments.root,
        device=arguments.device,
    )
    print(eval_run.table(found), flush=True)
    return _write("eval", eval_run.write, found, arguments.directory)


@_of_a_run("predict")
def _predict(arguments: argparse.Namespace) -> int:
    from snnfast.train import predict

    try:
        print(
            predict.run(
                arguments.directory,
                arguments.images,
                weights=arguments.weights,
                threshold=arguments.threshold,
                device=arguments.device,
            )
        )
    except predict.DataError as error:
        return _fail(f"predict: {error}", 1)
    return 0


@_of_a_run("export", ValueError, OSError)
def _export(arguments: argparse.Namespace) -> int:
    from snnfast.train import export

    if arguments.step and arguments.form == "nir":
        return _fail("export: --step is for onnx and pt2: NIR has no time", 2)
    print(
        export.run(
            arguments.directory,
            arguments.form,
            output=arguments.output,
            step=arguments.step,
            batch=arguments.batch,
            weights=arguments.weights,
        )
    )
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from snnfast.train import report
    from snnfast.train.config import ConfigError

    try:
        groups = report.run(arguments.runs)
    except ConfigError as error:
        return _fail(f"report: {error}", 2)
    print(report.markdown(groups), flush=True)
    return _write("report", report.write, groups, arguments.output)


def _write(command: str, write, *what) -> int:
    """Keep what has been shown; a disk that does not take it is the last to be told of."""
    from snnfast.train.config import ConfigError

    try:
        if path := write(*what):
            print(path)
    except ConfigError as error:
        return _fail(f"{command}: {error}", 1)
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from snnfast.train import profile_report
    from snnfast.train.config import ConfigError

    try:
        found, title = profile_report.run(
            arguments.model,
            timesteps=arguments.timesteps,
            batch=arguments.batch_size,
            image_size=arguments.image_size,
            channels=arguments.channels,
            classes=arguments.classes,
            device=arguments.device,
            dtype=arguments.dtype,
            output=arguments.output,
        )
    except ConfigError as error:
        return _fail(error, 2)
    except ImportError as error:
        return _fail(f"profile: {error}", 1)
    print(f"{title}\n\n{profile_report.table(found)}", flush=True)
    if arguments.output is None:
        return 0
    return _write("profile", profile_report.write, found, arguments.output, title)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def _range(text: str) -> int:
    """T of "T" or "1..T"."""
    first, dots, last = text.rpartition("..")
    if dots and first != "1":
        raise argparse.ArgumentTypeError(f"must be T or 1..T, got {text!r}")
    return _positive(last)


def _info(arguments: argparse.Namespace) -> int:
    import snnfast

    try:
        print(snnfast.info())
    except ModuleNotFoundError as error:
        return _fail(f"info: {error}; run: pip install {error.name}", 1)
    return 0


def _fail(message, status: int) -> int:
    print(f"snnfast: error: {message}", file=sys.stderr)
    return status
