"""Help answers at once: the command line loads what is heavy only when a verb runs."""

from __future__ import annotations

import sys

import pytest

from nnunet_ext.cli import VERBS

HEAVY = ["torch", "torchvision", "timm", "nnunetv2", "batchgenerators", "batchgeneratorsv2", "acvl_utils"]
ARRAYS = ["numpy", "scipy", "SimpleITK", "nibabel", "matplotlib"]
HELP_CPU_S = 1.5
"""CPU seconds allowed for a help text, imports included; 0.1 on an idle core, the rest is for a busy one."""

IMPORT = f"""
import json, sys
import nnunet_ext.cli
print(json.dumps([name for name in {HEAVY + ARRAYS} if name in sys.modules]))
"""

HELP = f"""
import json, sys, time
from nnunet_ext.cli import cli
cli([sys.argv[1], "--help"], prog_name="nnunet-ext", standalone_mode=False)
loaded = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps({{"loaded": loaded, "cpu_s": time.process_time()}}))
"""


def test_importing_the_command_line_loads_nothing_heavy(probe):
    assert probe(sys.executable, IMPORT) == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_loads_no_torch_and_answers_at_once(probe, verb):
    result = probe(sys.executable, HELP, verb)
    assert result["loaded"] == []
    assert result["cpu_s"] < HELP_CPU_S


def test_an_unknown_verb_is_a_usage_error(probe):
    script = """
import sys
sys.argv = ["nnunet-ext", "contour"]
try:
    from nnunet_ext.cli import main
    main()
except SystemExit as end:
    print(end.code)
"""
    assert probe(sys.executable, script) == 2
