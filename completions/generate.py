"""Write the completion scripts beside this file: ``python completions/generate.py``.

Typer makes them; the zsh one is changed so that it also works where zsh loads it by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
FILES = {"bash": "vbatch.bash", "zsh": "_vbatch", "fish": "vbatch.fish"}

# A file in $fpath is run as the function _vbatch at the first TAB: it must complete then, not only register.
ZSH_REGISTER = "compdef _vbatch_completion vbatch\n"
ZSH_COMPLETE_OR_REGISTER = """\
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _vbatch_completion "$@"
else
  compdef _vbatch_completion vbatch
fi
"""


def script(shell: str) -> str:
    """Return the completion script for bash, zsh or fish."""
    made = subprocess.run(
        [sys.executable, "-m", "vbatch"],
        env=os.environ | {"_VBATCH_COMPLETE": f"source_{shell}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    text = made.stdout.strip() + "\n"
    return text.replace(ZSH_REGISTER, ZSH_COMPLETE_OR_REGISTER)


if __name__ == "__main__":
    for shell, name in FILES.items():
        (HERE / name).write_text(script(shell))
