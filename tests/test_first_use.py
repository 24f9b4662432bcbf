"""Threads that are the first to use the library, all at once."""

import subprocess
import sys

THREADS = """
import random, threading
import jaxvae

names, failed = [name for name in dir(jaxvae) if not name.startswith("_")], []

def use(seed):
    mine = list(names)
    random.Random(seed).shuffle(mine)
    for name in mine:
        try:
            getattr(jaxvae, name)
        except Exception as error:
            failed.append(f"{name}: {error}")

threads = [threading.Thread(target=use, args=(seed,)) for seed in range(16, 32)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failed)
"""


def test_threads_may_be_the_first_to_use_every_name():
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
