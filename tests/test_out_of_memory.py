"""When memory runs out, the decoder takes smaller chunks, and says what would fit when none are left."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from largest_tensor import LargestTensor
from test_decoder_sed import LOGITS, random_inputs
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sed_hf import address_space, decoder_sed
from sed_hf.chunking_sed import allocatable_bytes, is_out_of_memory
from sed_hf.decoder_sed import CHUNK_BYTES, SEDDecoder


class MemoryLimit(TorchDispatchMode):
    """Within it, an operation whose result is larger than the limit finds no memory."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.num_bytes = num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with LargestTensor() as largest:
            result = func(*args, **(kwargs or {}))
        if largest.num_bytes > self.num_bytes:
            raise torch.OutOfMemoryError(f"{largest.num_bytes} bytes")
        return result


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(decoder_sed.logger, "warning", messages.append)
    return messages


def largest_tensor(decoder: SEDDecoder, **inputs: Any) -> int:
    with LargestTensor() as largest:
        decoder(**inputs)
    return largest.num_bytes


def limit_between(decoder: SEDDecoder, **inputs: Any) -> int:
    """A limit that the default chunk does not fit, and smaller ones do."""
    default = largest_tensor(decoder, **inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_BYTES, "cpu", 1)
        smallest = largest_tensor(decoder, **inputs)
    assert smallest < 0.7 * default
    return (smallest + default) // 2


@pytest.mark.parametrize("topk", [None, 8])
@torch.no_grad()
def test_where_the_default_chunk_does_not_fit_the_result_is_the_same_with_one_warning(
    make_tiny_model: Callable, warnings: list[str], topk: int | None
) -> None:
    inputs = random_inputs(num_classes=9, height=128) | {"early_rejection_topk": topk}
    decoder = make_tiny_model().decoder
    expected = decoder(**inputs).logits
    with MemoryLimit(limit_between(decoder, **inputs)):
        first, second = decoder(**inputs).logits, decoder(**inputs).logits
    torch.testing.assert_close(first, expected, rtol=0, atol=LOGITS)
    torch.testing.assert_close(second, expected, rtol=0, atol=LOGITS)
    assert len(warnings) == 1
    assert "memory ran out while decoding 9 classes" in warnings[0]


@torch.no_grad()
def test_where_one_class_does_not_fit_an_error_says_what_would(
    make_tiny_model: Callable, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_sed, "allocatable_bytes", lambda most, device: min(most, 2**12))
    inputs = random_inputs(num_classes=9)
    decoder = make_tiny_model().decoder
    with MemoryLimit(2**12), pytest.raises(torch.OutOfMemoryError, match=r"9 classes of 1 image.*which would fit 0 cl"):
        decoder(**inputs)
    assert len(warnings) == 1


@torch.no_grad()
def test_after_the_error_chunks_are_large_again(make_tiny_model: Callable, warnings: list[str]) -> None:
    inputs = random_inputs(num_classes=9)
    decoder = make_tiny_model().decoder
    at_first = largest_tensor(decoder, **inputs)
    with MemoryLimit(2**12), pytest.raises(torch.OutOfMemoryError):
        decoder(**inputs)
    assert largest_tensor(decoder, **inputs) == at_first


@torch.no_grad()
def test_the_features_that_the_error_states_are_those_that_are_held(make_tiny_model: Callable) -> None:
    """Of 40 classes more, decoding holds 40 times the stated features more."""
    decoder, held = make_tiny_model(class_chunk_size=1).decoder, []
    for num_classes in (20, 60):
        outputs = decoder(**random_inputs(num_classes=num_classes), output_hidden_states=True)
        held.append(outputs.hidden_states[-2].nbytes + sum(x.nbytes for x in (outputs.logits, *outputs.aux_logits)))
    stated = decoder.explain_lack_of_memory(random_inputs()["dense_embeddings"], 2**20).split("image(s) are ")[1]
    assert float(stated.split(" MiB")[0]) == pytest.approx((held[1] - held[0]) / 40, rel=0.01)


@torch.no_grad()
def test_another_error_is_not_taken_for_a_lack_of_memory(
    make_tiny_model: Callable, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_tiny_model().decoder
    monkeypatch.setattr(decoder, "head", nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        decoder(**random_inputs())
    assert not warnings


def test_torchs_error_of_a_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value)


@pytest.mark.parametrize(
    ("error", "is_lack"),
    [
        (RuntimeError("could not create a primitive"), True),  # oneDNN
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("unable to mmap 723126764 bytes from file: Cannot allocate memory (12)"), True),  # torch's files
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_errors_of_libraries_are_recognised_by_what_they_say(error: Exception, is_lack: bool) -> None:
    assert is_out_of_memory(error) == is_lack


def test_what_can_be_allocated_is_found_by_trying() -> None:
    assert allocatable_bytes(2**20, torch.device("cpu")) == 2**20
    assert 2**20 < allocatable_bytes(2**60, torch.device("cpu")) < 2**60


IN_A_SMALL_PROCESS = """
import resource, sys, torch
sys.path[:0] = ["tests", "tests/reference"]
from conftest import make_tiny_config, official_weights
from test_decoder_sed import random_inputs
from sed_hf import decoder_sed
from sed_hf.conversion import convert_official_checkpoint

torch.set_num_threads(1)
messages = []
decoder_sed.logger.warning = messages.append
decoder = convert_official_checkpoint(official_weights("tiny", 0), make_tiny_config()).decoder
inputs = random_inputs(num_classes=200, height=256, width=256)
with torch.no_grad():
    expected = decoder(**inputs).logits
    decoder.config.class_chunk_size = 200
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + {room} * 2**20,) * 2)
    actual = decoder(**inputs).logits
print(f"{{(actual - expected).abs().max().item():.1e}} {{len(messages)}} {{decoder.chunk_divisor}}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and statistics of a process are read as on Linux")
def test_a_process_whose_memory_is_limited_ends_with_the_same_result() -> None:
    """200 classes in one chunk make tensors of 105 MB, several at a time; the process has 250 MB left."""
    # So that glibc gives back what is freed: what is left is the same in every run, and whatever has run before.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-c", IN_A_SMALL_PROCESS.format(room=250)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert ended.returncode == 0, ended.stderr
    difference, num_warnings, divisor = ended.stdout.split()
    assert float(difference) <= LOGITS
    assert (int(num_warnings), int(divisor) > 1) == (1, True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and statistics of a process are read as on Linux")
def test_a_process_with_hardly_any_memory_does_not_crash() -> None:
    """oneDNN calls kernels for whose code it found no memory. Now and then glibc has kept enough for the result."""
    command = [sys.executable, "-c", IN_A_SMALL_PROCESS.format(room=40)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    error = "torch.OutOfMemoryError: out of memory on cpu, even with one class decoded at a time"
    assert ended.returncode == 0 or (ended.returncode == 1 and error in ended.stderr)


IN_A_SMALL_ADDRESS_SPACE = """
import resource
from sed_hf.cli import main
resource.setrlimit(resource.RLIMIT_AS, ({mebibytes} * 2**20,) * 2)
raise SystemExit(main(["encode", "names.safetensors", "--classes", "sky"]))
"""
SIZE_WITH_TORCH = "import torch; print(next(int(x.split()[1]) for x in open('/proc/self/status') if 'VmPeak' in x))"


@pytest.mark.skipif(sys.platform != "linux", reason="limits and statistics of a process are read as on Linux")
def test_the_command_says_when_the_address_space_is_too_small_for_its_libraries(tmp_path: Path) -> None:
    """Without the check OpenBLAS waits forever."""
    torch_kibibytes = subprocess.run([sys.executable, "-c", SIZE_WITH_TORCH], capture_output=True, check=True).stdout
    mebibytes = int(torch_kibibytes) // 2**10 + 300
    command = [sys.executable, "-c", IN_A_SMALL_ADDRESS_SPACE.format(mebibytes=mebibytes)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"sed-hf: error: the address space of this process is limited to {mebibytes} MiB")
    assert not any(tmp_path.iterdir())


def test_where_nothing_limits_the_address_space_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address_space, "address_space_limit", lambda: None)
    monkeypatch.setattr(address_space, "LIBRARY_BYTES", 2**60)
    address_space.require_address_space()
