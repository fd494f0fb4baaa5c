"""The metrics as a table of the documentation: `python -m diastole.server.observe.table docs/operations.md`."""

import sys
from pathlib import Path

from diastole.proto.files import write_bytes
from diastole.server.observe.metrics import PREFIX, SPECS

BEGIN, END = "<!-- made by `make docs`: metrics -->", "<!-- the end of the metrics -->"


def table() -> str:
    """Return the metrics as Markdown."""
    rows = [f"| `{PREFIX}{s.name}` | {s.kind} | {', '.join(s.labels)} | {s.help} |" for s in SPECS]
    return "\n".join(["| metric | kind | labels | what |", "| --- | --- | --- | --- |", *rows])


def renewed(text: str) -> str:
    """Return a text with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_bytes(path, renewed(path.read_text()).encode())
