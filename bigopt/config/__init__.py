"""The conf: typed, strict, layered. Every option, its default and its meaning stand once, in `bigopt.config.table`.

Example
-------
>>> from bigopt.config import load_conf
>>> conf = load_conf([], ["optimizer.name=sgd", "stop.steps=200"])
>>> conf.schedule.learning_rate, conf.stop.epochs, conf.origin("stop.steps")
(0.01, None, 'command line')
"""

from bigopt.config.layers import Conf, fill, load_conf, load_text, resume_conf
from bigopt.config.output import (
    RESUMABLE,
    Difference,
    Option,
    base_yaml,
    conf_hash,
    diff,
    options,
    redact,
    safe,
    to_yaml,
)
from bigopt.config.rules import choose_backend, describe_defaults
from bigopt.config.settings import COMMAND_LINE
from bigopt.config.table import (
    BackendConf,
    BatchConf,
    CheckpointConf,
    DataConf,
    IngestConf,
    ModelConf,
    OptimizerConf,
    RunConf,
    ScheduleConf,
    Scratch,
    StopConf,
    StrategyConf,
    Tree,
)

__all__ = [
    "COMMAND_LINE",
    "RESUMABLE",
    "BackendConf",
    "BatchConf",
    "CheckpointConf",
    "Conf",
    "DataConf",
    "Difference",
    "IngestConf",
    "ModelConf",
    "OptimizerConf",
    "Option",
    "RunConf",
    "ScheduleConf",
    "Scratch",
    "StopConf",
    "StrategyConf",
    "Tree",
    "base_yaml",
    "choose_backend",
    "conf_hash",
    "describe_defaults",
    "diff",
    "fill",
    "load_conf",
    "load_text",
    "options",
    "redact",
    "resume_conf",
    "safe",
    "to_yaml",
]
