"""Write the generated code beside the `.proto` files (`make proto`)."""

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).resolve().parent
PACKAGE = Path("diastole/v1")


def generate(target: Path, source: Path = PROTO) -> list[Path]:
    """Generate messages, stubs and type stubs of every `.proto` below `source` into `target`.

    Returns the files written, sorted. Raises `subprocess.CalledProcessError` if the compiler refuses a file.
    """
    protos = sorted(str(path.relative_to(source)) for path in (source / PACKAGE).glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={source}"]
    outputs = [f"--{kind}={target}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    subprocess.run([*command, *outputs, *protos], check=True)
    for path in (target / PACKAGE).glob("*_pb2_grpc.py"):
        # A .proto without a service has no stubs worth keeping.
        if not (source / PACKAGE / path.name.replace("_pb2_grpc.py", ".proto")).read_text().count("\nservice "):
            path.unlink()
    return sorted((target / PACKAGE).glob("*_pb2*"))


if __name__ == "__main__":
    generate(PROTO)
