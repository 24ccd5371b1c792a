"""What imports what: libraries that setup.cfg declares, and the package's own modules, in one direction."""

import ast
import configparser
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sed_hf"
# The extra that a file may presume as it is loaded: of the first prefix that fits. Without one it is `pip install .`.
EXTRAS = {
    "src/sed_hf/demo/": "demo",
    "src/sed_hf/inference/video": "video",
    "tests/": "test",
    "": "",
}
FILES = [ROOT / "app.py", *(path for folder in ("src", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))]
PRODUCT = [path for path in FILES if not path.is_relative_to(ROOT / "tests")]
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
CARRIED_LIBRARIES = {
    *("torch", "torchvision", "transformers", "timm", "numpy"),
    *("huggingface_hub", "safetensors", "tokenizers", "tqdm", "PIL"),  # which those bring
    "ftfy",  # used where it is installed
}
# Each of these imports only from its own line and the lines above it; the carried files come first.
LAYERS = [
    ["configuration_sed"],
    ["chunking_sed", "class_inputs_sed"],
    ["modeling_sed"],
    ["image_processing_sed", "processing_sed"],
    ["pipeline_sed"],
    ["__init__", "utils", "terminal", "visualization"],
    ["conversion", "data", "hub", "inference", "metrics"],
    ["evaluation"],
    ["demo", "training"],
    ["cli"],
]


def imports(path: Path, in_functions: bool) -> list[ast.Import | ast.ImportFrom]:
    """The import statements that run as a file is loaded, or also as its functions run."""
    found, nodes = [], [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        elif in_functions or not isinstance(node, ast.FunctionDef):
            nodes.extend(ast.iter_child_nodes(node))
    return found


def libraries(path: Path, in_functions: bool = True) -> set[str]:
    """The first names of the modules that a file imports absolutely, but for those of the standard library."""
    names = set()
    for node in imports(path, in_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names


def own_modules(module: str) -> set[str]:
    """The modules of the package that one imports, also in its functions."""
    path, found = PACKAGE / f"{module}.py", set()
    for node in imports(path, in_functions=True):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            for alias in node.names:
                candidates = [base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py"]
                source = next(file for file in candidates if file.is_file())
                found.add(source.relative_to(PACKAGE).with_suffix("").as_posix())
    return found - {module}


def distribution(requirement: str) -> str:
    """The normal name of what is required: open-clip-torch of `open_clip_torch>=3.0`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


@cache
def providers() -> dict[str, set[str]]:
    """The installed distributions that have a module, by its first name."""
    return {module: {distribution(name) for name in names} for module, names in packages_distributions().items()}


@cache
def declared_modules(*extras: str) -> set[str]:
    """The modules of what setup.cfg requires, with these extras, and of what that requires itself."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    direct = {distribution(line) for option in options for line in option.split("\n") if line}
    allowed = direct | {
        distribution(line) for name in direct for line in requires(name) or [] if "extra ==" not in line
    }
    return {module for module, names in providers().items() if names & allowed}


def undeclared(path: Path, extras: set[str], in_functions: bool) -> set[str]:
    """What a file imports that comes neither with the extras nor from this repository."""
    own = {
        "sed_hf",
        "scripts",
        *({name for file in FILES for name in (file.stem, file.parent.name)} - providers().keys()),
    }
    return libraries(path, in_functions) - own - declared_modules(*sorted(extras - {""}))


@pytest.mark.parametrize("extra", sorted(set(EXTRAS.values())))
def test_what_a_file_imports_as_it_is_loaded_comes_with_its_extra(extra: str) -> None:
    extra_of = {
        path: next(extra for prefix, extra in EXTRAS.items() if path.relative_to(ROOT).as_posix().startswith(prefix))
        for path in FILES
    }
    files = [path for path in FILES if extra_of[path] == extra]
    assert {path: names for path in files if (names := undeclared(path, {extra}, in_functions=False))} == {}


def test_what_is_imported_as_functions_run_comes_with_some_extra() -> None:
    extras = {"demo", "video", "benchmark", "export"}
    assert {path: names for path in PRODUCT if (names := undeclared(path, extras, in_functions=True))} == {}


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({module: own_modules(module) for module in MODULES}).prepare()


def test_imports_point_in_one_direction() -> None:
    layers = {name: index for index, names in enumerate(LAYERS) for name in names}
    layer = {module: layers[first] for module in MODULES if (first := module.partition("/")[0]) in layers}
    pairs = {(module, imported) for module in layer for imported in own_modules(module) & layer.keys()}
    assert {pair for pair in pairs if layer[pair[0]] < layer[pair[1]]} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith("_sed")])
def test_carried_files_import_only_each_other_and_what_their_users_have(module: str) -> None:
    assert "/" not in module
    assert {name for name in own_modules(module) if not name.endswith("_sed")} == set()
    assert libraries(PACKAGE / f"{module}.py") <= CARRIED_LIBRARIES


@pytest.mark.parametrize("path", [path for path in PRODUCT if path.name != "app.py"], ids=lambda path: path.name)
def test_the_package_is_imported_relatively_and_no_path_is_edited(path: Path) -> None:
    assert "sys.path" not in path.read_text(encoding="utf-8")
    assert not (path.is_relative_to(PACKAGE) and "sed_hf" in libraries(path))


@pytest.mark.parametrize(
    "statement", ["import sed_hf", "from sed_hf import load; from sed_hf.cli.main import build_parser; build_parser()"]
)
def test_neither_the_package_nor_the_command_waits_for_torch(statement: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'gdown'}"
    code = f"{statement}; import sys; assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_transformers_knows_the_model_and_its_task_once_the_package_is_imported() -> None:
    code = (
        "import sed_hf; from transformers import AutoConfig; from transformers.pipelines import PIPELINE_REGISTRY;"
        "PIPELINE_REGISTRY.check_task('open-vocabulary-segmentation'); AutoConfig.for_model('sed')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
