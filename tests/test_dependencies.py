"""What imports what: the modules of the package in one direction, and those that a Hub repository carries little."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sed_hf"
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


def name_of(path: Path) -> str:
    """What a module of the package is called here, such as `hub/load`."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The libraries and the modules of the package that a file imports, but for Python's own and those of types."""
    libraries, modules, nodes = set(), set(), [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            libraries |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
            for alias in node.names:
                candidates = [base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py"]
                modules.add(name_of(next(file for file in candidates if file.is_file())))
        elif isinstance(node, ast.ImportFrom):
            libraries.add(str(node.module).partition(".")[0])
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes.extend(ast.iter_child_nodes(node))
    return libraries - sys.stdlib_module_names, modules


LIBRARIES, MODULES = {}, {}  # of each module of the package
for _path in sorted(PACKAGE.rglob("*.py")):
    LIBRARIES[name_of(_path)], MODULES[name_of(_path)] = imports(_path)


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({module: imported - {module} for module, imported in MODULES.items()}).prepare()


def test_imports_point_in_one_direction() -> None:
    layers = {name: index for index, names in enumerate(LAYERS) for name in names}
    layer = {module: layers[first] for module in MODULES if (first := module.partition("/")[0]) in layers}
    pairs = {(module, imported) for module in layer for imported in MODULES[module] & layer.keys()}
    assert {pair for pair in pairs if layer[pair[0]] < layer[pair[1]]} == set()


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith("_sed")])
def test_carried_files_import_only_each_other_and_what_their_users_have(module: str) -> None:
    assert "/" not in module
    assert {name for name in MODULES[module] if not name.endswith("_sed")} == set()
    assert LIBRARIES[module] <= CARRIED_LIBRARIES


def test_the_package_is_imported_relatively_and_no_path_is_edited() -> None:
    assert [module for module, libraries in LIBRARIES.items() if "sed_hf" in libraries] == ["metrics/evaluate_module"]
    files = [path for folder in ("src", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert [path for path in files if "sys.path" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    "statement", ["import sed_hf", "from sed_hf import load; from sed_hf.cli.main import build_parser; build_parser()"]
)
def test_neither_the_package_nor_the_command_waits_for_torch(statement: str) -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'gdown', 'gradio', 'av'}"
    code = f"{statement}; import sys; assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_transformers_knows_the_model_and_its_task_once_the_package_is_imported() -> None:
    code = (
        "import sed_hf; from transformers import AutoConfig; from transformers.pipelines import PIPELINE_REGISTRY;"
        "PIPELINE_REGISTRY.check_task('open-vocabulary-segmentation'); AutoConfig.for_model('sed')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
