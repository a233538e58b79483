"""The environment of all tests. It is set here because the libraries read it when they are first imported."""

import atexit
import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # no test uses the network
os.environ["ACCELERATE_USE_CPU"] = "1"  # the same numbers on a machine with a GPU
CACHE = tempfile.mkdtemp(prefix="bert-snli-tests-")  # files that an earlier run cached would hide faults
os.environ["HF_DATASETS_CACHE"] = CACHE
os.environ["TORCHINDUCTOR_CACHE_DIR"] = CACHE  # its key does not contain ATEN_CPU_CAPABILITY
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes the programs that it starts with & ignore it
