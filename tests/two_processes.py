"""Programs on two processes, as `torchrun` and `accelerate launch` start them."""

import os
import subprocess
import sys

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python"]


def run_on_two_processes(program: str, *arguments: str, is_killed: bool = False) -> str:
    """Run Python code, which may import what the tests can, on CPUs, and return what it prints."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*LAUNCHER, sys.executable, "-c", program, *arguments]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert (process.returncode != 0) == is_killed, process.stderr
    return process.stdout + process.stderr
