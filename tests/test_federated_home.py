"""The set-up that `flwr run` needs, as a shell takes it up."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_shell_that_takes_up_a_set_up_that_failed_sees_that_it_failed():
    line = f'eval "$({sys.executable} federated/home.py --nodes many)" && echo "all is well"'
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == "" and "--nodes" in done.stderr
    help_asked = subprocess.run([sys.executable, "federated/home.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "false" not in help_asked.stdout
