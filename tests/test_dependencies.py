"""What imports what: libraries that setup.cfg declares, and the package's own modules, in one direction."""

import ast
import configparser
import re
import sys
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The extra that a file may presume as it is loaded: of the first prefix that fits. Without one it is `pip install .`.
EXTRAS = {
    "src/sed_hf/data/": "train",
    "src/sed_hf/evaluation/": "train",
    "src/sed_hf/metrics/": "train",
    "src/sed_hf/training/": "train",
    "src/sed_hf/demo/": "demo",
    "src/sed_hf/inference/video": "video",
    "scripts/": "train",
    "tests/": "test",
    "": "",
}
FILES = [ROOT / "app.py", *(path for folder in ("src", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))]
PRODUCT = [path for path in FILES if not path.is_relative_to(ROOT / "tests")]
PACKAGE = ROOT / "src" / "sed_hf"
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py"))
CARRIED_LIBRARIES = {
    *("torch", "torchvision", "transformers", "timm", "numpy"),
    *("huggingface_hub", "safetensors", "tokenizers", "tqdm", "PIL"),  # which those bring
    "ftfy",  # used where it is installed
}
# Each of these imports only from its own line and the lines above it; the carried files come first.
LAYERS = [
    ["configuration_sed"],
    ["chunking_sed"],
    ["modeling_sed"],
    ["image_processing_sed", "processing_sed"],
    ["pipeline_sed"],
    ["__init__", "utils", "terminal", "argument_types", "visualization"],
    ["conversion", "data", "hub", "inference", "metrics"],
    ["evaluation"],
    ["demo", "training"],
    ["cli"],
]


def extra_of(path: Path) -> str:
    """The extra that a file may presume."""
    return next(extra for prefix, extra in EXTRAS.items() if path.relative_to(ROOT).as_posix().startswith(prefix))


@cache
def declared(*extras: str) -> set[str]:
    """The distributions that setup.cfg requires, with these extras, and those that they require themselves."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    options = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    direct = {distribution(line) for option in options for line in option.split("\n") if line}
    return direct | {distribution(line) for name in direct for line in requires(name) or [] if "extra ==" not in line}


def distribution(requirement: str) -> str:
    """The normal name of what is required: open-clip-torch of `open_clip_torch>=3.0`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def imports(node: ast.AST, in_functions: bool) -> set[str]:
    """The first names of the modules that are imported as a file is loaded, or also as its functions run."""
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {str(node.module).partition(".")[0]} if node.level == 0 else set()
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    if not in_functions and (for_types or isinstance(node, ast.FunctionDef)):
        return set()
    return {name for child in ast.iter_child_nodes(node) for name in imports(child, in_functions)}


@cache
def providers() -> dict[str, set[str]]:
    """The installed distributions that have a module, by its first name."""
    return {module: {distribution(name) for name in names} for module, names in packages_distributions().items()}


def undeclared(path: Path, allowed: set[str], in_functions: bool) -> set[str]:
    """The modules that a file imports though no allowed distribution has them."""
    own = {"sed_hf", "scripts", *({file.stem for file in FILES} - providers().keys())}
    foreign = imports(ast.parse(path.read_text(encoding="utf-8")), in_functions) - own - sys.stdlib_module_names
    return {name for name in foreign if not allowed & providers().get(name, set())}


@pytest.mark.parametrize("extra", sorted(set(EXTRAS.values())))
def test_what_a_file_imports_as_it_is_loaded_comes_with_its_extra(extra: str) -> None:
    files = [path for path in FILES if extra_of(path) == extra]
    allowed = declared(extra) if extra else declared()
    assert {path: names for path in files if (names := undeclared(path, allowed, in_functions=False))} == {}


def test_what_is_imported_as_functions_run_comes_with_some_extra() -> None:
    extras = {"train", "demo", "video", "benchmark", "export"}
    allowed = {path: declared(*sorted(extras | {extra_of(path)} - {""})) for path in PRODUCT}
    assert {path: names for path in PRODUCT if (names := undeclared(path, allowed[path], in_functions=True))} == {}


def imported_modules(module: str) -> set[str]:
    """The modules of the package that one imports, also in its functions; not those of which it only names types."""
    path = PACKAGE / f"{module}.py"
    found = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and child.level:
                base = path.parents[child.level - 1] / (child.module or "").replace(".", "/")
                for alias in child.names:
                    candidates = [base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py"]
                    source = next(file for file in candidates if file.is_file())
                    found.add(source.relative_to(PACKAGE).with_suffix("").as_posix())
            elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found - {module}


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({module: imported_modules(module) for module in MODULES}).prepare()


def test_imports_point_in_one_direction() -> None:
    layers = {name: index for index, names in enumerate(LAYERS) for name in names}
    layer = {module: layers.get(module.partition("/")[0]) for module in MODULES}
    upward = {
        f"{module} imports {imported}"
        for module in MODULES
        for imported in imported_modules(module)
        if layer[module] is not None and layer[imported] is not None and layer[imported] > layer[module]  # type: ignore[operator]
    }
    assert upward == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith("_sed")])
def test_carried_files_import_only_each_other_and_what_their_users_have(module: str) -> None:
    assert "/" not in module
    assert {name for name in imported_modules(module) if not name.endswith("_sed")} == set()
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    assert imports(tree, in_functions=True) <= CARRIED_LIBRARIES | sys.stdlib_module_names


@pytest.mark.parametrize("path", [path for path in PRODUCT if path.name != "app.py"], ids=lambda path: path.name)
def test_the_package_is_imported_relatively_and_no_path_is_edited(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    assert "sys.path" not in content
    if path.is_relative_to(PACKAGE):
        assert "sed_hf" not in imports(ast.parse(content), in_functions=True)
