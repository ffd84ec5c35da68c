"""Environment variables that sbatch reads, and the environment that a job gets.

In sbatch, variables override the ``#SBATCH`` lines of a script. Variables of options that the
script states, or that would break requeueing or logs, must therefore be hidden from sbatch. The
names are from sbatch(1), INPUT ENVIRONMENT VARIABLES, of SLURM 22.05 to 25.05.
"""

import re
from collections.abc import Collection, Mapping

# Our setting -> variable from which sbatch reads it
_WISHES = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "time": "SBATCH_TIMELIMIT",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
    "mem": "SBATCH_MEM_PER_NODE",
    "gpus_per_node": "SBATCH_GPUS_PER_NODE",
}

# Dropped with a message, as `submit` decides these. Otherwise a run would not resume (signal,
# requeueing), not start (environment) or have no log (output files).
_OURS = {
    "SBATCH_ARRAY_INX", "SBATCH_ERROR", "SBATCH_EXPORT", "SBATCH_NO_KILL", "SBATCH_NO_REQUEUE",
    "SBATCH_OPEN_MODE", "SBATCH_OUTPUT", "SBATCH_SIGNAL", "SBATCH_WAIT",
    # squeue would not find the job; use SLURM_CLUSTERS, which all SLURM commands read
    "SBATCH_CLUSTERS",
    # Contradict --gpus-per-node, which determines the number of processes
    "SBATCH_CPUS_PER_GPU", "SBATCH_GPUS", "SBATCH_GPUS_PER_SOCKET", "SBATCH_GPUS_PER_TASK",
    "SBATCH_TRES_PER_TASK",
}  # fmt: skip

# Option -> variables, where the names are irregular. Each option for memory excludes the others
_MEMORY = ("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU")
_IRREGULAR = {
    "time": ("SBATCH_TIMELIMIT",),
    "mem": _MEMORY,
    "mem_per_cpu": _MEMORY,
    "mem_per_gpu": _MEMORY,
    "array": ("SBATCH_ARRAY_INX",),
    "bb": ("SBATCH_BURST_BUFFER",),
    "cpu_freq": ("SBATCH_CPU_FREQ_REQ",),
    "switches": ("SBATCH_REQ_SWITCH", "SBATCH_WAIT4SWITCH"),
    "verbose": ("SBATCH_DEBUG",),
}

# Variables of a surrounding job or torchrun; a new job gets its own
_OF_A_JOB = re.compile(
    r"SLURM_(?!(CONF|CLUSTERS)$)|SRUN_|PMI|SUBMITIT_|SBATCH_(CPU|MEM)_BIND"
    r"|((LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_ADDR|MASTER_PORT)$"
)


def wishes(environment: Mapping[str, str], job: str, given: Collection[str]) -> dict[str, str]:
    """Setting -> variable of ``environment`` from which to take it.

    job: jobs that are one process take no number of GPUs. given: names of settings and other
    options of sbatch that the user gave; these win over variables.
    """
    stated = {variable for name in given for variable in variables_of(name)}
    return {
        name: variable
        for name, variable in _WISHES.items()
        if environment.get(variable)
        and variable not in stated
        and not (name == "gpus_per_node" and _is_one_process(job))
    }


def dropped(environment: Mapping[str, str], job: str, given: Collection[str]) -> list[str]:
    """Variables that `submit` hides from sbatch although no option of the user replaces them."""
    stated = {variable for name in given for variable in variables_of(name)}
    names = _OURS | ({"SBATCH_GPUS_PER_NODE"} if _is_one_process(job) else set())
    if names_gpus(environment.get("SBATCH_GRES", "")):
        names = names | {"SBATCH_GRES"}
    return sorted(name for name in names - stated if environment.get(name))


def job_environment(
    environment: Mapping[str, str], stated: Collection[str], leave_out: Collection[str]
) -> dict[str, str]:
    """The environment for sbatch.

    stated: options of sbatch that the user gave or the script has; the script omits options given
    as 0. leave_out: names of variables. Empty SBATCH_ variables are dropped too: sbatch would read
    one as a partition without a name, for example.
    """
    hidden = {variable for name in stated for variable in variables_of(name)} | {*leave_out}
    return {
        name: value
        for name, value in plain_environment(environment).items()
        if name not in hidden and (value or not name.startswith("SBATCH_"))
    }


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables of a job in which this process may run."""
    return {name: value for name, value in environment.items() if not _OF_A_JOB.match(name)}


def variables_of(option: str) -> tuple[str, ...]:
    """The variables from which sbatch reads an option or options that contradict it."""
    name = option.replace("-", "_")
    return _IRREGULAR.get(name, (f"SBATCH_{name.upper()}",))


def given_names(settings: Collection[str], extra: Collection[str]) -> set[str]:
    """Names, for `variables_of`, of the settings and other options of sbatch that the user gave.

    ``extra``: KEY=VALUE or KEY. ``gres=gpu:...`` counts as gpus_per_node.
    """
    pairs = [text.lstrip("-").partition("=") for text in extra]
    named = {*settings, *(key.replace("-", "_") for key, _, _ in pairs)}
    gres = next((value for key, _, value in pairs if key == "gres"), "")
    return named | ({"gpus_per_node"} if names_gpus(gres) else set())


def names_gpus(gres: str) -> bool:
    """Whether a list of resources such as ``gpu:a100:4,nvme:1`` includes GPUs."""
    return re.search(r"\bgpu\b", gres) is not None


def _is_one_process(job: str) -> bool:
    return job in ("data", "bench")
