"""Other projects' programs that benches measure beside ours, each in an environment of its own, made on first use.

`NAME.txt` lists what a peer needs beyond our own packages, which its environment sees too; what it pins otherwise comes first there.
"""

import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent


def peer_python(name: str) -> str | None:
    """The interpreter of a peer's environment; None, with a line that says why, where it cannot be made.

    Environments are kept in the folder named by MEDLEY_PEERS (default: medley-peers in the system's temporary folder).
    """
    requirements = (FOLDER / f"{name}.txt").read_bytes()
    own_packages = sysconfig.get_paths()["purelib"]
    key = hashlib.sha256(requirements + own_packages.encode()).hexdigest()[:12]
    root = Path(os.environ.get("MEDLEY_PEERS", str(Path(tempfile.gettempdir()) / "medley-peers"))) / f"{name}-{key}"
    python = root / "bin" / "python"
    if not (root / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(root)], check=True)
        packages = root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (packages / "ours.pth").write_text(own_packages)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--requirement", str(FOLDER / f"{name}.txt")]
        done = subprocess.run(install, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            print(f"peer '{name}' is left out, it cannot be installed: {done.stdout.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        (root / "complete").touch()
    return str(python)
