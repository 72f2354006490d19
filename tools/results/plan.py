"""What the tables consist of: methods, starts, and the name of every part."""

# Presets of config/method; their keys are set on top of the robot's configuration, one by one.
METHODS = ["off2on-code", "off2on-paper", "uniform", "online-only", "sac-ft", "cql-ft", "cal-ql", "wsrl", "rlpd", "awac"]

# Tasks of the gantry, each with a configuration of its name; their data are collected.
GANTRY = ["gantry-pickplace", "gantry-closed", "gantry-blocked"]

# Data of HalfCheetah's starts of table (b); several files are joined into one.
STARTS = {
    "random": ["halfcheetah_random_v5.npz"],
    "medium-replay": ["halfcheetah_medium_replay_v5.npz"],
    "medium": ["halfcheetah_medium_v5.npz"],
    "medium-strong": ["halfcheetah_medium_v5.npz", "halfcheetah_strong_v5.npz"],
}


def config_of(start):
    """The robot's configuration."""
    return f"config/{start}.toml" if start in GANTRY else "config/halfcheetah.toml"


def pretrain_name(start, seed):
    """Name of a pretraining."""
    return f"pretrain-{start}-s{seed}"


def finetune_name(start, method, seed):
    """Name of a fine-tuning; start "published" is table (a)."""
    return f"finetune-{start}-{method}-s{seed}"
