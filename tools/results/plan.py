"""What the HalfCheetah tables consist of: methods, starts, and the name of every part."""

# Presets of config/method; their keys are set on top of config/halfcheetah.toml, one by one.
METHODS = ["off2on-code", "off2on-paper", "uniform", "online-only", "sac-ft", "cql-ft", "cal-ql", "wsrl", "rlpd", "awac"]

# Data of the starts of table (b); several files are joined into one.
STARTS = {
    "random": ["halfcheetah_random_v5.npz"],
    "medium-replay": ["halfcheetah_medium_replay_v5.npz"],
    "medium": ["halfcheetah_medium_v5.npz"],
    "medium-strong": ["halfcheetah_medium_v5.npz", "halfcheetah_strong_v5.npz"],
}


def pretrain_name(start, seed):
    """Name of a pretraining."""
    return f"pretrain-{start}-s{seed}"


def finetune_name(start, method, seed):
    """Name of a fine-tuning; start "published" is table (a)."""
    return f"finetune-{start}-{method}-s{seed}"
