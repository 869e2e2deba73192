"""Golden files: the float64 truth of a run, and the verdict on a port by it (see README.md in this folder).

record    a run            -> golden file
compare   golden, dump     -> Report: does rounding explain every difference, and where is the first it does not
replay    the same, model  -> Report with the block that is wrong even on the port's own tensors

record_gradients, compare_gradients and replay_gradients do the same with a loss and its gradients; GradientOptions says
which loss, and what of the model is trained.
"""

from npgemma.golden.compare import Report, compare
from npgemma.golden.dump import Dump, read_dump
from npgemma.golden.file import Golden, read_golden
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_options import GradientOptions
from npgemma.golden.gradient_presets import gradient_preset
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.gradient_replay import replay_gradients
from npgemma.golden.mapping import NameMap, Rule
from npgemma.golden.mapping_file import read_mapping
from npgemma.golden.presets import PRESETS, preset
from npgemma.golden.record import record
from npgemma.golden.replay import replay

__all__ = [
    "PRESETS",
    "Dump",
    "Golden",
    "GradientOptions",
    "NameMap",
    "Report",
    "Rule",
    "compare",
    "compare_gradients",
    "gradient_preset",
    "preset",
    "read_dump",
    "read_golden",
    "read_mapping",
    "record",
    "record_gradients",
    "replay",
    "replay_gradients",
]
