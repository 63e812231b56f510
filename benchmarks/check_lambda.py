"""A check of features.py: a lambda in a script without a main guard, as a user first tries it.

python check_lambda.py fork|spawn TOOL
"""

import importlib
import os
import sys

tool = importlib.import_module(f"peers.{sys.argv[2]}")
offset = 1
try:
    outputs = sorted(tool.stream(lambda item: item + offset, range(10), sys.argv[1] == "spawn"))
    verdict = "yes" if outputs == list(range(1, 11)) else f"no: {len(outputs)} of 10 results"
except BaseException as error:
    verdict = f"no: {type(error).__name__}"
print(verdict, flush=True)
os._exit(0)
