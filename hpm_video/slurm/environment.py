"""Variables of the user's environment that sbatch reads, and what of the environment a job gets.

sbatch lets a variable override the ``#SBATCH`` lines of a script. So what a script states, and what
would break a job's requeueing or logs, must not be in the environment that sbatch sees. The names
are those of sbatch(1), INPUT ENVIRONMENT VARIABLES, of SLURM 22.05 to 25.05.
"""

import re
from collections.abc import Collection, Mapping

# Settings of ours that sbatch reads from a variable too
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

# Dropped, and the user is told. `submit` decides these: without its warning signal and requeueing
# a run does not resume, without its environment and output files it does not start or has no log.
_OURS = {
    "SBATCH_ARRAY_INX", "SBATCH_ERROR", "SBATCH_EXPORT", "SBATCH_NO_KILL", "SBATCH_NO_REQUEUE",
    "SBATCH_OPEN_MODE", "SBATCH_OUTPUT", "SBATCH_SIGNAL", "SBATCH_WAIT",
    # Squeue would not find the job; SLURM_CLUSTERS is heard by all of SLURM's commands
    "SBATCH_CLUSTERS",
    # Contradict --gpus-per-node, from which the number of processes follows
    "SBATCH_CPUS_PER_GPU", "SBATCH_GPUS", "SBATCH_GPUS_PER_SOCKET", "SBATCH_GPUS_PER_TASK",
    "SBATCH_TRES_PER_TASK",
}  # fmt: skip

# Variables of options whose names do not follow from the option's. Memory is asked for in one way.
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

# What describes the job or torchrun that we may be running in; a new job has its own.
_OF_A_JOB = re.compile(
    r"SLURM_(?!(CONF|CLUSTERS)$)|SRUN_|PMI|SUBMITIT_|SBATCH_(CPU|MEM)_BIND"
    r"|((LOCAL_|GROUP_)?(RANK|WORLD_SIZE)|MASTER_ADDR|MASTER_PORT)$"
)


def wishes(environment: Mapping[str, str], job: str, given: Collection[str]) -> dict[str, str]:
    """Variables that sbatch would take settings from, by the settings' names.

    job: a job without GPUs, or that is one process, takes no number of GPUs. given: names of
    settings and of other options of sbatch that the user gave, which are not asked for.
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
    """Variables of sbatch that `submit` does not pass on and that no option replaces."""
    stated = {variable for name in given for variable in variables_of(name)}
    names = _OURS | ({"SBATCH_GPUS_PER_NODE"} if _is_one_process(job) else set())
    if names_gpus(environment.get("SBATCH_GRES", "")):
        names = names | {"SBATCH_GRES"}
    return sorted(name for name in names - stated if environment.get(name))


def job_environment(
    environment: Mapping[str, str], stated: Collection[str], leave_out: Collection[str]
) -> dict[str, str]:
    """The environment to submit from.

    stated: options of sbatch that the user gave or the script has; an option that was given as 0
    is in no script. leave_out: names of variables. An empty variable of sbatch says nothing, but
    sbatch would take it for a partition without a name.
    """
    hidden = {variable for name in stated for variable in variables_of(name)} | {*leave_out}
    return {
        name: value
        for name, value in plain_environment(environment).items()
        if name not in hidden and (value or not name.startswith("SBATCH_"))
    }


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what belongs to a job that this process may be part of."""
    return {name: value for name, value in environment.items() if not _OF_A_JOB.match(name)}


def variables_of(option: str) -> tuple[str, ...]:
    """The variables from which sbatch reads an option, or options that contradict it."""
    name = option.replace("-", "_")
    return _IRREGULAR.get(name, (f"SBATCH_{name.upper()}",))


def given_names(settings: Collection[str], extra: Collection[str]) -> set[str]:
    """Names of the settings and other options of sbatch (KEY=VALUE or KEY) that the user gave, as
    `variables_of` takes them. ``gres=gpu:...`` is another way to say how many GPUs there are."""
    pairs = [text.lstrip("-").partition("=") for text in extra]
    named = {*settings, *(key.replace("-", "_") for key, _, _ in pairs)}
    gres = next((value for key, _, value in pairs if key == "gres"), "")
    return named | ({"gpus_per_node"} if names_gpus(gres) else set())


def names_gpus(gres: str) -> bool:
    """Whether a list of resources, as ``gpu:a100:4,nvme:1``, has GPUs."""
    return re.search(r"\bgpu\b", gres) is not None


def _is_one_process(job: str) -> bool:
    return job in ("data", "bench")
