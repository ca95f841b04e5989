"""The table of options: every key of a conf with its type, range, default and one line that says what it does.

This is the single source. ``conf/base.yml``, ``bigopt options``, the checks of a conf and its resolved copy in the run
directory are all made from these classes, so none of them can drift. One frozen struct is one group; a field is a key;
its annotation holds the type, the range (``ge``, ``gt``, ``le``, ``lt``) and the comment. ``null`` means the sensible
default of what was chosen (`bigopt.config.names` has those), and what was chosen is printed at the start of a run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MOST = 2**63 - 1
"""Integers are those of 64 bits."""

Count = Annotated[int, Meta(ge=1, le=MOST)]
Natural = Annotated[int, Meta(ge=0, le=MOST)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Portion = Annotated[float, Meta(gt=0, lt=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Text = Annotated[str, Meta(min_length=1)]
Bytes = Annotated[int, Meta(ge=1, le=MOST, extra={"unit": "bytes"})]
Columns = Annotated[tuple[Text, ...], Meta(min_length=1)]


def key(comment: str) -> Meta:
    """Comment of one key, as base.yml and ``bigopt options`` print it."""
    return Meta(description=comment)


class Group(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of keys."""


class Scratch(Group, frozen=True):
    """A node-local place for decoded blocks."""

    dir: Annotated[Text, key("directory on a local disk, the same path on every node")]
    size: Annotated[Bytes, key("bytes to use there, such as 20GB")]


class DataConf(Group, frozen=True):
    """The dataset that is trained on."""

    uri: Annotated[
        Text | None, key("Zarr group, Parquet file or directory, NPZ, NPY or svmlight text: a path or an fsspec URL")
    ] = None
    target: Annotated[
        Text | Columns | None, key("target column or columns; null: what the dataset declares, else y")
    ] = None
    features: Annotated[
        Columns | None, key("feature columns by name, in this order; null: all but target and weight")
    ] = None
    weight: Annotated[Text | None, key("column of sample weights; null: the dataset's own, else 1")] = None
    task: Annotated[
        Literal["regression", "classification"] | None,
        key("regression | classification, for mlp; null: by the manifest, else by the target's dtype"),
    ] = None
    classes: Annotated[
        tuple[bool | int | float | str, ...] | None,
        key("class labels in order; null: the sorted distinct labels of the training rows"),
    ] = None
    class_weight: Annotated[
        Literal["balanced"] | dict[str, Positive] | None,
        key("balanced (W / (classes x weight of the class)) or {'label': factor}, of training rows; null: 1"),
    ] = None
    validation: Annotated[
        Portion | Text | None, key("a fraction of the rows (by keyed hash of the row number) or a URI; null: none")
    ] = None
    dtype: Annotated[
        Literal["float32", "float64"] | None, key("float32 | float64 of the blocks; null: by what the features hold")
    ] = None
    index_base: Annotated[
        Literal[0, 1] | None,
        key("index of the first column in svmlight text; null: 0 where an index 0 occurs in the file, else 1"),
    ] = None
    memory: Annotated[Bytes, key("bytes of rows each process may hold: decoded blocks, buffers, temporaries")] = (
        2 * 10**9
    )
    scratch: Annotated[
        Scratch | None, key("{dir: ..., size: 20GB}: decoded blocks on a local disk, mapped by all workers of a node")
    ] = None
    block_rows: Annotated[Count | None, key("rows folded at a time inside a unit (part of the bits); null: chosen")] = (
        None
    )
    unknown: Annotated[
        Literal["error", "zero"], key("error | zero: a category the model has never seen, at evaluate and predict")
    ] = "error"
    on_bad_rows: Annotated[Literal["error", "skip"], key("error | skip: rows with nulls or non-finite numbers")] = (
        "error"
    )
    storage_options: Annotated[
        dict[str, Any], key("options for the store, as fsspec takes them; secrets are never written")
    ] = {}


class IngestConf(Group, frozen=True):
    """How raw files become the dataset (bigopt ingest)."""

    source: Annotated[
        Text | list[Any] | dict[str, Any] | None,
        key("raw file or files: CSV (also zipped), Parquet, NPZ, NPY, svmlight (also .gz, .bz2)"),
    ] = None
    columns: Annotated[
        list[Any] | dict[str, Any] | None, key("columns to read, as a list or {name: dtype}; null: all")
    ] = None
    join: Annotated[
        list[Any] | dict[str, Any] | None, key("{source, on: [...], columns: [...]}: a small table looked up by key")
    ] = None
    derive: Annotated[dict[str, Any], key("new columns by formula, such as {late: arr_delay > 15}")] = {}
    where: Annotated[Text | list[Any] | None, key("keep the rows where this holds, such as arr_delay is not null")] = (
        None
    )
    encode: Annotated[
        dict[str, Any],
        key(
            "{carrier: onehot, size: {ordinal: [s, m]}, dest: {top: 20}, remark: words}; words are hashed, rows sparse"
        ),
    ] = {}
    nulls: Annotated[
        Text | dict[str, Any] | None, key("error | drop, or by column {dep_delay: mean, '*': drop}; null: error")
    ] = None
    out: Annotated[Text | None, key("where the dataset is written; null: data.uri")] = None
    format: Annotated[Literal["zarr", "parquet"] | None, key("zarr | parquet; null: by the suffix of the output")] = (
        None
    )
    partition_rows: Annotated[
        Count | tuple[Count, ...] | None, key("rows of a partition, or of each one; null: chosen from the size")
    ] = None


class ModelConf(Group, frozen=True):
    """What is fitted."""

    name: Annotated[Text, key("linear | ridge | logistic | softmax | mlp | perceptron | svm")] = "mlp"
    hidden: Annotated[tuple[Count, ...], key("mlp: widths of the hidden layers; []: none")] = (128,)
    activation: Annotated[Text, key("mlp: identity | sigmoid | tanh | relu | softmax of the hidden layers")] = "relu"
    groups: Annotated[
        Count | tuple[Count, ...] | None,
        key("mlp: blocks of block-diagonal layers, one number or one a layer; null: 1"),
    ] = None
    shortcut: Annotated[bool, key("mlp: add the input of a layer to its output where the widths are equal")] = False
    batchnorm: Annotated[
        bool | Literal["center"],
        key("mlp: true | false | center: inputs of layers 2, ... normalised, moments by one Map-Reduce an epoch"),
    ] = False
    loss: Annotated[
        Text | None,
        key(
            "squared | huber | binary_cross_entropy | categorical_cross_entropy | perceptron | hinge | squared_hinge; "
            "null: by model and target"
        ),
    ] = None
    huber_delta: Annotated[Positive, key("huber: where the square turns into a line")] = 1.0
    l2: Annotated[NonNegative, key("penalty l2 * ||w||^2 (no 1/2; intercepts excluded)")] = 0.0
    l1: Annotated[NonNegative, key("penalty l1 * ||w||_1 (intercepts excluded), by proximal steps: exact zeros")] = 0.0
    intercept: Annotated[bool, key("fit intercepts, never penalised")] = True
    standardize: Annotated[
        bool | Literal["center"], key("true | false | center: features to mean 0 and deviation 1, or to mean 0 only")
    ] = True
    whiten: Annotated[bool, key("decorrelate the features (moments X^T X by one Map-Reduce)")] = False
    init: Annotated[
        Text,
        key("glorot_uniform | glorot_normal | he_uniform | he_normal | zeros (intercepts 0), a run or a .npy file"),
    ] = "glorot_uniform"
    backprop: Annotated[
        Literal["map", "driver"],
        key("map: in the workers | driver: workers send rows, the driver computes (same bits)"),
    ] = "map"


class OptimizerConf(Group, frozen=True):
    """How a mean gradient becomes a step. A key the chosen optimizer does not use is refused."""

    name: Annotated[
        Text,
        key(
            "gd | sgd | momentum | nesterov | adagrad | rmsprop | adadelta | adam | adamw | amsgrad | adamax | nadam | "
            "yogi | lion | lars | lamb | newton | lbfgs"
        ),
    ] = "adam"
    momentum: Annotated[Decay | None, key("momentum, nesterov, lars: mu; null: 0.9")] = None
    beta1: Annotated[Decay | None, key("adam and its kin, lion: decay of the mean; null: 0.9")] = None
    beta2: Annotated[Decay | None, key("adam and its kin, lion: decay of the squares; null: 0.999, lion 0.99")] = None
    eps: Annotated[
        Positive | None, key("added to the root; null: adagrad 1e-10, adadelta, lamb 1e-6, yogi 1e-3, else 1e-8")
    ] = None
    decay: Annotated[Decay | None, key("rmsprop: decay of the squares; null: 0.9")] = None
    rho: Annotated[Decay | None, key("adadelta: decay of both averages; null: 0.9")] = None
    weight_decay: Annotated[
        NonNegative | None, key("decoupled weight decay, intercepts excluded; null: adamw 0.01; lion, lars, lamb 0")
    ] = None
    clip_norm: Annotated[Positive | None, key("scale the gradient down to this norm; null: off")] = None
    clip_value: Annotated[Positive | None, key("clip each entry of the gradient, before clip_norm; null: off")] = None
    average: Annotated[bool | Decay | None, key("of the iterates: true (mean) or a decay (moving); null: off")] = None
    damping: Annotated[NonNegative | None, key("newton: lambda added to the Hessian's diagonal; null: 0")] = None
    history: Annotated[Count | None, key("lbfgs: pairs kept; null: 10")] = None


class ScheduleConf(Group, frozen=True):
    """The learning rate as a function of time. A key the chosen schedule does not use is refused."""

    name: Annotated[
        Text,
        key(
            "constant | inverse_time | inverse_sqrt | exponential | step | polynomial | one_cycle | cosine | "
            "exact_line_search | backtracking"
        ),
    ] = "constant"
    learning_rate: Annotated[
        Positive | Literal["auto"] | None,
        key("eta at the start; null: the optimizer's own (adam 0.001, sgd 0.01, ...); auto: found by short trials"),
    ] = None
    decay: Annotated[
        Positive | None, key("inverse_time: eta / (1 + decay k), inverse_sqrt: eta / sqrt(1 + decay k); null: 1")
    ] = None
    gamma: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        key("exponential: eta gamma^k; null: 0.01 eta at the end; step, backtracking: factor; null: 0.1, 0.5"),
    ] = None
    every: Annotated[Positive | None, key("step: k between two drops; null: a third of the run's length")] = None
    power: Annotated[Positive | None, key("polynomial: eta (1 - k/period)^power; null: 1")] = None
    eta_min: Annotated[NonNegative | None, key("cosine: the lowest rate; null: 0")] = None
    period: Annotated[
        Positive | None, key("cosine (the first), polynomial, one_cycle; null: the run's length after the warm-up")
    ] = None
    t_mul: Annotated[Annotated[float, Meta(ge=1)] | None, key("cosine: each period over the one before; null: 1")] = (
        None
    )
    warmup: Annotated[Positive | None, key("k of a linear warm-up before any schedule; null: none")] = None
    start_factor: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None, key("warm-up: part of eta it begins with; null: 1/3")
    ] = None
    pct_start: Annotated[Portion | None, key("one_cycle: part of the period that rises; null: 0.3")] = None
    div: Annotated[Positive | None, key("one_cycle: highest rate over the first; null: 25")] = None
    final_div: Annotated[Positive | None, key("one_cycle: first rate over the last; null: 1e4")] = None
    delta: Annotated[Portion | None, key("backtracking: share of the expected decrease; null: 1e-4")] = None
    M: Annotated[Positive | None, key("scaling critical: the noise scale M in rows, as diagnose prints it")] = None
    unit: Annotated[Literal["step", "epoch"], key("step | epoch: what k, period, every and warmup count")] = "step"
    scaling: Annotated[
        Literal["none", "linear", "sqrt", "critical"],
        key("none | linear | sqrt | critical: how the rate follows the batch from base_batch rows on"),
    ] = "none"
    base_batch: Annotated[
        Count | None,
        key("scaling: the batch that the rate is meant for; null: 128, the first where batches grow"),
    ] = None


Factor = Annotated[float, Meta(gt=1)]


class GrowthConf(Group, frozen=True):
    """How batches grow."""

    factor: Annotated[Factor, key("what the batch is multiplied by")] = 2.0
    every: Annotated[Count, key("epochs between two sizes")] = 1
    max: Annotated[Count | Literal["full"], key("rows of the largest batch, or full")] = "full"


class BatchConf(Group, frozen=True):
    """Which rows are behind one gradient."""

    size: Annotated[
        Count | Literal["full"] | None,
        key("rows of a batch over all workers, or full; null: 128, but full for gd, newton, lbfgs and line searches"),
    ] = None
    sampling: Annotated[
        Text,
        key(
            "auto | permuted | block | subset | bernoulli | replacement (auto: permuted where the rows fit, else block)"
        ),
    ] = "auto"
    lanes: Annotated[
        Natural | None, key("open partitions a batch draws from; 0: all; null: chosen from data and conf")
    ] = None
    growth: Annotated[
        Factor | GrowthConf | None,
        key("multiply the batch by this after each epoch, or {factor: 2, every: 1, max: full}; null: off"),
    ] = None


class CompressionConf(Group, frozen=True):
    """Gradient compression on the wire."""

    name: Annotated[Text | None, key("null: off")] = None
    fraction: Annotated[Annotated[float, Meta(gt=0, le=1)] | None, key("part of the entries that is sent")] = None
    error_feedback: Annotated[bool, key("add what was not sent to the next gradient")] = True


class StrategyConf(Group, frozen=True):
    """When updates are applied, and to what. A key the chosen strategy does not use is refused."""

    name: Annotated[
        Text, key("sync | backup | async | ssp | hogwild | local_sgd | downpour | easgd | model_parallel | hybrid")
    ] = "sync"
    replicas: Annotated[
        Count | None, key("copies of w that take their own steps; hybrid: groups; null: by the workers at the start")
    ] = None
    bound: Annotated[Natural | None, key("ssp: largest staleness")] = None
    local_steps: Annotated[Count | None, key("local_sgd: steps between two averages")] = None
    n_fetch: Annotated[Count | None, key("downpour: steps between two fetches")] = None
    n_push: Annotated[Count | None, key("downpour: steps between two pushes")] = None
    local_learning_rate: Annotated[Positive | None, key("rate of local steps; null: the schedule's")] = None
    update_on: Annotated[Literal["driver", "worker"] | None, key("model_parallel: where the update runs")] = None
    solver: Annotated[
        Literal["gradient", "coordinate", "dual"] | None,
        key("model_parallel: gradient | coordinate (a block at a time) | dual (by groups of rows)"),
    ] = None
    shards: Annotated[Count | None, key("pieces of the parameter server")] = None
    shards_on: Annotated[Literal["driver", "workers"] | None, key("where the pieces live")] = None
    alpha: Annotated[Portion | None, key("easgd: elastic force")] = None
    every: Annotated[Count | None, key("easgd: local steps between pulls; async, ssp: updates between checks")] = None
    spares: Annotated[Natural | None, key("backup: further holders of each group of partitions")] = None
    split: Annotated[Literal["units", "layers"] | None, key("model_parallel of an mlp: cut by units | layers")] = None
    blocks: Annotated[
        Count | None, key("model_parallel: pieces of the model, null: the workers at the start; hybrid: members")
    ] = None
    micro_batches: Annotated[
        Count | None, key("split layers: parts of a batch that follow each other; null: two a stage")
    ] = None
    write: Annotated[
        Literal["overwrite", "atomic_add"] | None,
        key("hogwild: atomic_add loses no update (batches of 1)"),
    ] = None
    threads: Annotated[
        Count | None, key("hogwild: threads of one vector; null: the workers on local, one a worker elsewhere")
    ] = None
    reply: Annotated[Literal["worker", "broadcast"] | None, key("async: who gets the new w")] = None
    outer: Annotated[dict[str, Any] | None, key("local_sgd: optimizer of the outer step; null: plain averaging")] = None
    replay: Annotated[
        Text | None, key("async, ssp, downpour, easgd: updates.csv of a run to repeat, with its bits; null: none")
    ] = None
    compression: Annotated[CompressionConf, key("gradient compression on the wire")] = CompressionConf()


class BackendConf(Group, frozen=True):
    """Where the Map runs."""

    name: Annotated[
        Literal["auto", "local", "dask", "spark"],
        key("auto | local | dask | spark (auto: spark under spark-submit, else local)"),
    ] = "auto"
    workers: Annotated[
        Count | None, key("slots that run one unit at a time; null: the cores, or all of a given cluster")
    ] = None
    device: Annotated[Literal["cpu", "gpu", "auto"], key("cpu | gpu | auto: where the Map computes")] = "cpu"
    address: Annotated[
        Text | None, key("dask: scheduler address or file; spark: master; null: a cluster of bigopt's own")
    ] = None
    retries: Annotated[Natural, key("times a lost unit is ordered again")] = 3
    timeout: Annotated[Positive, key("seconds to wait for workers")] = 60.0
    channel: Annotated[
        Literal["auto", "off"],
        key("auto | off: workers connect to the driver; off, or where none can: calls of Dask actors, Spark jobs"),
    ] = "auto"
    reduce: Annotated[
        Literal["auto", "driver", "workers"],
        key("driver | workers, each a slice (sync) | auto: workers of a given dask cluster, from 3 slots and 16 MB on"),
    ] = "auto"


class StopConf(Group, frozen=True):
    """When the run ends: the first limit or target reached. At least one of epochs, steps, seconds."""

    epochs: Annotated[
        Annotated[int, Meta(gt=0)] | Annotated[float, Meta(gt=0)] | None,
        key("passes over the used rows; null: no limit"),
    ] = 5
    steps: Annotated[Count | None, key("updates of the parameters; null: no limit")] = None
    seconds: Annotated[Positive | None, key("time, added up over resumes; null: no limit")] = None
    target_loss: Annotated[float | None, key("stop at this loss or below; null: none")] = None
    target_metric: Annotated[
        dict[str, float] | None, key("stop at this metric, such as {accuracy: 0.9}; null: none")
    ] = None
    tolerance: Annotated[
        NonNegative | None, key("stop without this relative improvement for `patience` checks; null: off")
    ] = None
    patience: Annotated[Count, key("checks without improvement before the run stops")] = 5


class CheckpointConf(Group, frozen=True):
    """When the state is saved."""

    every_seconds: Annotated[Positive | None, key("seconds between checkpoints; null: not by time")] = 60.0
    every_epochs: Annotated[Positive | None, key("epochs between checkpoints; null: not by epochs")] = None
    every_steps: Annotated[Count | None, key("steps between checkpoints; null: not by steps")] = None
    keep: Annotated[Count, key("checkpoints kept, the newest")] = 3


class RunConf(Group, frozen=True):
    """The run itself."""

    dir: Annotated[Text, key("where run directories are made")] = "data/runs"
    seed: Annotated[Natural, key("seed of every random stream")] = 0
    dtype: Annotated[Literal["float64", "float32"], key("float64 | float32 of params, state and sums in the tree")] = (
        "float64"
    )
    bits: Annotated[
        Literal["strict", "any"], key("strict: workers with other software or CPU are refused | any: they are accepted")
    ] = "strict"
    kernels: Annotated[
        Literal["auto", "numpy", "compiled"],
        key("numpy | compiled: by numba, other last bits | auto: compiled where it pays (long runs, numba installed)"),
    ] = "auto"
    audit: Annotated[bool, key("chain a hash over params, state and sampler at every step")] = False
    on_divergence: Annotated[
        Literal["stop", "halve_rate"],
        key("stop: exit 4, the last finite state kept | halve_rate: back to the best epoch with half the rate"),
    ] = "stop"
    metrics_every_steps: Annotated[Count | None, key("steps between two lines of metrics.jsonl; null: chosen")] = None


class Tree(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All groups, in the order of base.yml."""

    data: DataConf = DataConf()
    ingest: IngestConf = IngestConf()
    model: ModelConf = ModelConf()
    optimizer: OptimizerConf = OptimizerConf()
    schedule: ScheduleConf = ScheduleConf()
    batch: BatchConf = BatchConf()
    strategy: StrategyConf = StrategyConf()
    backend: BackendConf = BackendConf()
    stop: StopConf = StopConf()
    checkpoint: CheckpointConf = CheckpointConf()
    run: RunConf = RunConf()
