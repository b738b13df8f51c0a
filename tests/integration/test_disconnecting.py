"""A process that leaves the cluster keeps nothing of Ray's."""

import subprocess
import sys

PROGRAM = """
import gc, weakref, ray
from visurf_ray.cluster.resources import connected

class Cycle:
    def __init__(self):
        self.itself, self.reference = self, ray.put(0)

gc.disable()
with connected("local"):
    cycle = weakref.ref(Cycle())
    assert cycle() is not None
assert cycle() is None and not ray.is_initialized()
"""


def test_no_reference_is_left_to_a_garbage_collection_after_the_end(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
