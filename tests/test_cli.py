"""The command line: what it refuses, and how recipes are read."""

import subprocess
import sys

import pytest

import snnfast
from snnfast.cli import main
from snnfast.train import config as recipes
from snnfast.train.config import Config, ConfigError


def fails(capsys, *argv, status=2):
    """The one line on stderr of a command that is refused before any work."""
    assert main(list(argv)) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("\n")
    return err


def recipe(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return str(path)


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from snnfast.cli import main\n"
        "assert main(['--help']) == 0 and main(['train', '--help']) == 0\n"
        "assert main(['--version']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--twkd.alpha" in done.stdout and "--teacher" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("snnfast ")


def test_info_prints_what_was_built(capsys):
    assert main(["info"]) == 0
    assert capsys.readouterr().out == snnfast.info() + "\n"


def test_wrong_commands(capsys):
    assert "required: COMMAND" in fails(capsys)
    assert "invalid choice: 'trian'" in fails(capsys, "trian")
    assert "required: RECIPE" in fails(capsys, "train")
    assert "unrecognized arguments: more" in fails(capsys, "train", "digits_twkd", "more")
    assert "unrecognized arguments: --all" in fails(capsys, "info", "--all")


def test_missing_recipes(capsys, tmp_path):
    assert "did you mean 'digits_twkd'?" in fails(capsys, "train", "digit_twkd.toml")
    assert "snnfast comes with " in fails(capsys, "train", "zzz")
    assert "no recipe at" in fails(capsys, "train", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch' in .*recipe.toml .did you mean 'epochs'"),
        ("[twkd]\nalfa = 0.1", "unknown key 'twkd.alfa' in .*did you mean 'twkd.alpha'"),
        ("[neuron]\nalpha = 0.1", "unknown key 'neuron.alpha' in .*.neuron. has tau, v_threshold"),
        ("[twdk]\nalpha = 0.1", "unknown key 'twdk' in .*did you mean 'twkd'"),
        ("qqqq = 0.1", "unknown key 'qqqq' in [^(]*$"),
        ("epochs = 0", "epochs must be >= 1, got 0"),
        ("epochs = 1.5", "epochs must be a whole number, got 1.5"),
        ("epochs = true", "epochs must be a whole number, got True"),
        ("seed = '3'", "seed must be a whole number, got '3'"),
        ("lr = 0", "lr must be > 0, got 0"),
        ("lr = nan", "lr must be a number, got nan"),
        ("output = 3", "output must be text, got 3"),
        ("twkd = 3", r"twkd must be a table \[twkd\], got 3"),
        ("[twkd]\nself_target = 'median'", "twkd.self_target must be 'mean' or 'correct', got"),
        ("[neuron]\ndecay_input = 1", "neuron.decay_input must be true or false, got 1"),
        ("base = 'digit'", "did you mean 'digits_twkd'"),
        ("base = 'recipe'", "recipe.toml: it is its own base"),
        ("base = 3", "recipe.toml: base must be the name of a recipe, got 3"),
        ("epochs = ", "recipe.toml: Invalid value"),
        ("epochs = 1\nepochs = 2", "recipe.toml: Cannot overwrite a value"),
        ("base = 'a/b'", "recipe.toml: base must be the name of a recipe, got 'a/b'"),
        ("base = '/a'", "recipe.toml: base must be the name of a recipe, got '/a'"),
        ("base = '..'", "no recipe at '..'"),
        ("base = ''", "no recipe at ''"),
        ("base = '" + 5000 * "a" + "'", "no recipe at 'aaaaaa.*"),
        (r'base = "\u0000"', r"no recipe at '.x00'"),
        ("epochs = " + 5000 * "[", "recipe.toml: nested too deeply"),
        ("epochs = " + 300 * "[" + 300 * "]", r"epochs must be a whole number, got \[\[\["),
        ("epochs" + 5000 * ".a" + " = 1", r"unknown key 'epochs.a' in .*did you mean 'epochs'"),
        ("[twkd]\nalpha" + 5000 * ".a" + " = 1", "twkd.alpha must be a number, got {'a': {'a': "),
        ("a" + 5000 * ".a" + " = 1", "unknown key 'a' in "),
        ("epochs = " + 5000 * "1", "recipe.toml: Exceeds the limit"),
        ("epochs = 0x" + 5000 * "1", "epochs must be .*, got a number of thousands of digits"),
        ("batch_size = 100000000000000000000", "batch_size must be <= 2147483647, got 1"),
        ("threads = 1000000", "threads must be <= 1024, got 1000000"),
        ("[data]\nworkers = 1000000", "data.workers must be <= 1024, got 1000000"),
        ("output = ''", "output must not be empty, got ''"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as refused:
        recipes.load(recipe(tmp_path, text))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2000


def test_recipes_that_are_no_text(capsys, tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"epochs = 1 # \xff")
    assert "recipe.toml: 'utf-8' codec" in fails(capsys, "train", str(tmp_path / "recipe.toml"))
    assert "no recipe at" in fails(capsys, "train", 5000 * "a")
    assert "no recipe at" in fails(capsys, "train", "\0")
    assert "output: " in fails(capsys, "train", "digits_twkd", "--output", "a\0b")
    assert "output must be text" in fails(capsys, "train", "digits_twkd", "--output", "\udcff")


def test_bases_of_bases_end(tmp_path):
    for i in range(30):
        (tmp_path / f"r{i}.toml").write_text(f"base = 'r{i + 1}'")
    with pytest.raises(ConfigError, match="more than 20 times"):
        recipes.load(str(tmp_path / "r0.toml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epoch", "3"], "unknown key 'epoch' in the command line (did you mean 'epochs'?)"),
        (["--alpha", "3"], "(did you mean 'twkd.alpha' or 'tser.alpha' or 'tssd.alpha'?)"),
        (["--twkd.alfa=3"], "did you mean 'twkd.alpha'?"),
        (["--epochs", "many"], "epochs must be a whole number, got 'many'"),
        (["--epochs", "-1"], "epochs must be >= 1, got '-1'"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--twkd.scale_by_temperature", "7"], "must be true or false, got '7'"),
        (["--seed", "none"], "seed must be a whole number, got 'none'"),
    ],
)
def test_bad_overrides(capsys, options, message):
    assert message in fails(capsys, "train", "digits_twkd", *options)
    if "did you mean" in message:  # wherever they stand
        assert message in fails(capsys, "train", *options, "digits_twkd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train", "15"], "digits: train must be a multiple of 10 from 10 to 4000, or 0"),
        (["--data.name", "digit"], "got 'digit' (did you mean 'digits'?)"),
        (["--model", "digits_cn"], "did you mean 'digits_cnn'"),
        (["--neuron.surrogate", "sigmoit"], "surrogate must be one of"),
        (["--neuron.backend", "gpu"], "backend must be one of"),
        (["--teacher.model", "digits_cnn"], "teacher.model: must be an ANN, got digits_cnn"),
        (["--model", "ann_digits_cnn"], "ann_digits_cnn is an ANN, which has no timesteps"),
        (["--objective", "tssd", "--tssd.student_steps", "9"], "must be <= timesteps"),
        (["--objective", "tssd"], "aux_head must name a stage"),
        (["--teacher.model", "none"], "alpha > 0 needs a teacher"),
        (["--teacher", "nowhere"], "teacher.checkpoint: nowhere"),
        (["--timesteps", "0"], "timesteps must be >= 1, got '0'"),
        (["--device", "gpu"], "device 'gpu' cannot be used: "),
        (["--output", __file__], "output: "),
    ],
)
def test_what_is_not_there_is_refused_before_any_work(capsys, tmp_path, options, message):
    output = tmp_path / "run"
    tiny = ["--data.train", "10", "--data.test", "10", "--epochs", "1", "--teacher.epochs", "1"]
    argv = ["train", "digits_twkd", "--output", str(output), *tiny, *options]
    assert message in fails(capsys, *argv)
    assert not output.exists()


def test_overrides_win_over_the_recipe_over_the_defaults(tmp_path):
    path = recipe(tmp_path, "epochs = 3\nlr = 1\n[neuron]\nv_reset = 'none'\ntau = inf\n")
    assert recipes.load(path).neuron.v_reset is None
    config = recipes.load(path, {"epochs": "5", "neuron.v_reset": "0.5", "twkd.beta": "0"})
    assert (config.epochs, config.lr, config.seed) == (5, 1.0, Config().seed)
    assert config.neuron.v_reset == 0.5 and config.neuron.tau == float("inf")
    assert config.twkd.beta == 0.0 and type(config.twkd.beta) is float and type(config.lr) is float


def test_a_recipe_is_over_its_base(tmp_path):
    (tmp_path / "low.toml").write_text("epochs = 3\nlr = 1.0\n[twkd]\nalpha = 0.3\nbeta = 0.1\n")
    path = recipe(tmp_path, "base = 'low'\nlr = 2.0\n[twkd]\nbeta = 0.2\n")
    config = recipes.load(path, {"twkd.alpha": "0.4"})
    assert (config.epochs, config.lr, config.twkd.alpha, config.twkd.beta) == (3, 2.0, 0.4, 0.2)


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_a_copied_recipe_loads(tmp_path, name):
    """Its base is found among the shipped ones, unless one lies beside it."""
    copy = tmp_path / f"{name}.toml"
    copy.write_bytes(recipes.list_recipes()[name].read_bytes())
    assert recipes.load(str(copy)) == recipes.load(name)
    copy.write_text(f"base = '{name}'\nlr = 0.123\n")  # of the shipped one of its name
    assert recipes.differences(recipes.load(str(copy)), recipes.load(name)) == ["lr"]
    (tmp_path / "_digits.toml").write_text("epochs = 77")
    copy.write_text("base = '_digits'")
    assert recipes.load(str(copy)).epochs == 77


def test_the_help_of_train_says_what_base_is(capsys):
    assert main(["train", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert 'with base = "NAME" it takes what it does not say from NAME.toml beside it' in out
    assert "--overwrite" in out and "default runs/RECIPE-SEED" in out


def test_the_help_of_train_shows_defaults(capsys):
    """As a recipe or an option would say them."""
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for name, item in recipes.keys():
        _, _, text = out.partition(f"  --{name} ")
        text = " ".join(text.partition("\n  --")[0].split())
        _, _, default = text.rpartition("; default ")
        if name != "output":
            value = recipes.flat(recipes.load("digits_twkd", {name: default.split()[0]}))[name]
            assert value == item.default or value == [item.default], name


@pytest.mark.parametrize("option", ["--data.image-size=0", "--data.image_size=0", "--image-size=0",
                                    "--image_size=0"])  # fmt: skip
def test_options_have_one_name_in_all_commands(capsys, option):
    assert "image_size" in fails(capsys, "train", "digits_twkd", option.replace("0", "-1"))
    assert "must be a whole number from 1, got '0'" in fails(capsys, "profile", "resnet18", option)
    assert "no recipe at 'zzz'" in fails(capsys, "train", "zzz", "--data.image-size=3")


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("tomli_w", ["train", "digits_twkd"]),
        ("pydantic", ["train", "digits_twkd"]),
        ("tomli_w", ["eval", "x"]),
    ],
)
def test_a_missing_extra_is_named_with_its_command(package, command):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"from snnfast.cli import main; sys.exit(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = f'{command[0]}: {package} is not installed: pip install "snnfast[train]"\n'
    assert (done.returncode, done.stderr) == (1, f"snnfast: error: {message}")


def test_configs_survive_a_file(tmp_path):
    overrides = {
        "output": 'a "b"\\c\n\t\x7f ü',
        "lr": "1e-5",
        "neuron.tau": "inf",
        "neuron.v_reset": "none",
        "neuron.detach_reset": "True",
        "neuron.backend": "cpu",
    }
    config = recipes.load(recipe(tmp_path, ""), overrides)
    assert config.output == overrides["output"] and config.neuron.detach_reset is True
    assert recipes.load(recipe(tmp_path, recipes.dump(config))) == config


def test_shipped_recipes_load_and_say_what_they_cost():
    files = sorted(recipes.RECIPES.glob("[!_]*.toml"))
    assert files
    for file in files:
        recipes.load(str(file))
        assert recipes.load(file.stem) == recipes.load(str(file))
        head = file.read_text().split("\n\n")[0]
        for part in ("command", "hardware", "time", "expected accuracy", "source"):
            assert f"# {part}" in head, f"{file.name} does not say its {part}"


def test_the_output_is_named_by_recipe_and_seed(tmp_path):
    assert recipes.load("digits_twkd").output == "runs/digits_twkd-0"
    assert recipes.load("digits_twkd", {"seed": "3"}).output == "runs/digits_twkd-3"
    assert recipes.load(recipe(tmp_path, "seed = 2")).output == "runs/recipe-2"
    assert recipes.load(recipe(tmp_path, "output = 'here'"), {"seed": "1"}).output == "here"
