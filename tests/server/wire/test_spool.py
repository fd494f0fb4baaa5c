"""What is left of uploads when a coordinator is killed."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from diastole.server.wire.spool import Spool

KILLED = """
import os, signal, sys
from pathlib import Path
from diastole.server.wire.spool import Spool
(Spool(Path(sys.argv[1])).path / "r1-one.part").write_bytes(b"update")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    with closing(Spool(tmp_path)) as living:
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        (dead,) = set(tmp_path.iterdir()) - {living.path}
        assert (dead / "r1-one.part").read_bytes() == b"update"
        with closing(Spool(tmp_path)) as later:
            assert set(tmp_path.iterdir()) == {living.path, later.path}
    assert not list(tmp_path.iterdir())
