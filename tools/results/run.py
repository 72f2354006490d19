#!/usr/bin/env python3
"""Runs the tables of docs/results-halfcheetah.md and docs/results-gantry.md, or a part of them, and renders the pages.

Every part (a pretraining, or one method's fine-tuning from one start with one seed) leaves one small JSON file in
docs/results. A part whose file has all its steps is not run again; one that was interrupted goes on from its last
checkpoint. The figures on the pages come from these files alone: tools/results/render.py.

Python's standard library only (3.11 or newer). Needs `cargo build --release` and tools/setup-native (README, "HalfCheetah").
"""

import argparse
import array
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import render
from plan import GANTRY, METHODS, STARTS, config_of, finetune_name, pretrain_name

ROOT = Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--datasets", type=Path, help="folder with halfcheetah_*_v5.npz; the gantry's data are collected")
    add("--published", type=Path, help="bundle of the published agents: table (a)")
    add("--starts", nargs="*", default=[], choices=[*STARTS, *GANTRY], help="data sets to pretrain on: table (b)")
    add("--collect-steps", type=int, default=60_000, help="gantry: steps of the script, and as many of chance")
    add("--methods", nargs="*", default=["off2on-code", "uniform", "online-only"], choices=METHODS)
    add("--seeds", nargs="*", type=int, default=[0, 1])
    add("--pretrain-seed", type=int, help="fine-tune all seeds from this one's pretraining; default: each from its own")
    add("--steps", type=int, default=30_000, help="online steps of a fine-tuning")
    add("--part-steps", type=int, default=10_000, help="online steps between two evaluations; a run stops and resumes there")
    add("--episodes", type=int, default=5, help="deterministic episodes of an evaluation")
    add("--pretrain-updates", type=int, default=100_000)
    add("--imitate", type=int, default=0, help="updates in which the actors imitate the data: the first of these, or, of the gantry, as many before them, on the script's half")
    add("--imitate-set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="while they imitate, after --set")
    add("--best", action="store_true", help="fine-tune the ensemble of the best evaluation, not the last one")
    add("--evaluate-every", type=int, default=10_000, help="pretraining updates between two evaluations")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for every part; kept in the raw files")
    add("--finetune-set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="while fine-tuning, after --set")
    add("--program", type=Path, default=ROOT / "target/release/fieldtune")
    add("--work", type=Path, default=ROOT / "runs/results", help="bundles, replay buffers and checkpoints")
    add("--raw", type=Path, default=ROOT / "docs/results", help="folder of the raw JSON files")
    add("--docs", type=Path, default=ROOT / "docs", help="folder of the page and its curves")
    add("--nice", type=int, default=10)
    return parser.parse_args()


def call(options, start, name, command, settings):
    """Runs the program; its words go to WORK/NAME.log. Ends this program when it fails."""
    options.work.mkdir(parents=True, exist_ok=True)
    line = [str(options.program), *command, "--config", config_of(start)]
    for setting in settings:
        line += ["--set", setting]
    print(f"{name}: {' '.join(command)}", flush=True)
    with open(options.work / f"{name}.log", "a", encoding="utf-8") as log:
        done = subprocess.run(line, cwd=ROOT, stdout=log, stderr=log, preexec_fn=lambda: os.nice(options.nice))
    if done.returncode != 0:
        sys.exit(f"{name} failed: see {options.work / name}.log")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def data_of(options, start):
    """The data set of a start; several files are joined into one."""
    if start in GANTRY:
        return collect(options, start)
    if options.datasets is None:
        sys.exit(f"{start} needs --datasets")
    names = STARTS[start]
    if len(names) == 1:
        return options.datasets / names[0]
    joined = options.work / f"{start}.npz"
    if not joined.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        join([options.datasets / name for name in names], joined)
    return joined


def facts_of(options, start):
    """Where it is said how a collected set is made up."""
    return options.work / f"data-{start}.json"


def collect(options, start):
    """Half of the steps by the task's script with noise, half by chance and without reward, in one buffer; the first half
    alone lies in FOLDER-scripted."""
    folder, facts, steps = options.work / f"data-{start}", facts_of(options, start), options.collect_steps
    if facts.exists():
        return folder
    for leftover in (folder, scripted(folder)):
        shutil.rmtree(leftover, ignore_errors=True)
    settings = [f"run.directory={folder}", "run.existing=resume", "replay.offline=", "replay.sampler=online",
                f"replay.capacity={3 * steps}"]  # fmt: skip
    command = ["collect", "--by", "robot", "--steps", str(steps)]
    call(options, start, f"data-{start}", command, [*settings, "simulator.script=[0.05, 0.15, 0.3]"])
    inspect = [str(options.program), "data", "inspect", str(folder), "--json"]
    found = json.loads(subprocess.run(inspect, cwd=ROOT, check=True, capture_output=True).stdout)
    shutil.copytree(folder, scripted(folder))
    command = ["collect", "--by", "uniform", "--steps", str(2 * steps)]
    call(options, start, f"data-{start}", command, [*settings, "episode.reward=outcome", "episode.success_reward=0"])
    write(facts, {"scripted_records": found["buffer"]["records"], "scripted_success": found["return_mean"], "steps": steps})
    return folder


def scripted(folder):
    """The scripted half of a collected set."""
    return folder.with_name(f"{folder.name}-scripted")


def by_source(options, start, name, settings):
    """What the sampler draws at present: shares of scripted, random and online steps."""
    drawn = options.work / f"{name}.sample.npz"
    call(options, start, name, ["data", "sample", str(options.work / name), "--n", "20000", "--out", str(drawn)], settings)
    archive = zipfile.ZipFile(drawn)
    index, online = (array.array("q", split_npy(archive.read(f"{column}.npy"))[1]) for column in ("index", "source"))
    drawn.unlink()
    first = read(facts_of(options, start))["scripted_records"]
    count = {"scripted": 0, "random": 0, "online": 0}
    for place, is_online in zip(index, online):
        count["online" if is_online else "scripted" if place < first else "random"] += 1
    return {source: rows / len(index) for source, rows in count.items()}


def join(files, out):
    """Concatenates the columns of .npz files along their first axis (npy version 1, equal types and widths)."""
    columns = ["observations", "actions", "rewards", "terminals", "timeouts"]
    temporary = out.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        for column in columns:
            parts = [split_npy(zipfile.ZipFile(file).read(f"{column}.npy")) for file in files]
            header = dict(parts[0][0])
            rows = sum(part[0]["shape"][0] for part in parts)
            if any((p[0]["descr"], p[0]["shape"][1:]) != (header["descr"], header["shape"][1:]) for p in parts):
                sys.exit(f"{column} of {', '.join(map(str, files))} do not fit together")
            header["shape"] = (rows, *header["shape"][1:])
            text = repr(header).encode()
            text += b" " * (-(len(text) + 11) % 64) + b"\n"
            blob = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
            target.writestr(f"{column}.npy", blob + b"".join(part[1] for part in parts))
    temporary.replace(out)


def split_npy(blob):
    """Header and data of an .npy file."""
    import ast

    wide = blob[6] >= 2
    length = int.from_bytes(blob[8 : 12 if wide else 10], "little")
    start = (12 if wide else 10) + length
    header = ast.literal_eval(blob[start - length : start].decode("latin1"))
    if header["fortran_order"]:
        sys.exit("a column is stored by columns; save it in C order")
    return header, blob[start:]


def pretrain(options, start, seed):
    """Pretrains on one data set; returns the bundle."""
    name = pretrain_name(start, seed)
    work, raw = options.work / name, options.raw / f"{name}.json"
    bundle = work / "bundle"
    if raw.exists() and bundle.exists() and read(raw)["updates"] >= options.pretrain_updates:
        return bundle
    report = work / "report.json"
    if not (report.exists() and bundle.exists() and read(report)["updates"] >= options.pretrain_updates):
        settings = [
            "run.existing=resume",
            f"run.seed={seed}",
            f"run.evaluate_episodes={options.episodes}",
            f"pretrain.evaluate_every={options.evaluate_every}",
            *options.set,
        ]
        command = ["pretrain", "--out", str(bundle), "--report", str(report), *(["--best"] if options.best else [])]
        data = [f"replay.offline={data_of(options, start)}", f"run.directory={work}"]
        if start in GANTRY and options.imitate:
            data.append(f"policy.bundle={imitate(options, start, name, settings)}")
            command.append("--from-bundle")
        else:
            settings.append(f"pretrain.behaviour_cloning_updates={options.imitate}")
            if options.imitate_set and not (report.exists() and read(report)["updates"] >= options.imitate):
                call(options, start, name, command, [*settings, *data, f"pretrain.updates={options.imitate}", *options.imitate_set])
        call(options, start, name, command, [*settings, *data, f"pretrain.updates={options.pretrain_updates}"])
    kept = {key: getattr(options, key) for key in ("best", "set", "imitate", "imitate_set")}
    before = work.with_name(f"{name}-imitated") / "report.json"
    if before.exists():
        kept["imitated"] = read(before)["evaluations"]
    write(raw, {"kind": "pretrain", "start": start, **kept, **read(report)})
    return bundle


def imitate(options, start, name, settings):
    """Agents that imitate the scripted half, and learn to see on the way; returns their bundle, from which the next stage
    goes on."""
    bundle = options.work / f"{name}-imitated" / "bundle"
    if not bundle.exists():
        own = [
            f"replay.offline={scripted(data_of(options, start))}",
            f"run.directory={bundle.parent}",
            "pretrain.method=behaviour-cloning",
            f"pretrain.updates={options.imitate}",
        ]
        report = str(bundle.parent / "report.json")
        command = ["pretrain", "--out", str(bundle), "--report", report]
        call(options, start, name, command, [*settings, *options.imitate_set, *own])
    return bundle


def preset(method):
    """Keys of a preset as settings, so that they win over the robot's file."""
    text = (ROOT / "config/method" / f"{method}.toml").read_text(encoding="utf-8")
    keys = ((section, key, value) for section, keys in tomllib.loads(text).items() for key, value in keys.items())
    return [f"{section}.{key}={toml(value)}" for section, key, value in keys]


def toml(value):
    """A value as TOML; texts as they are, which --set takes for paths and words."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(entry)}" for key, entry in value.items()) + " }"
    return value if isinstance(value, str) else json.dumps(value)


def finetune(options, start, bundle, data, method, seed):
    """Fine-tunes in parts; one evaluation after each."""
    name = finetune_name(start, method, seed)
    raw, work = options.raw / f"{name}.json", options.work / name
    done = read(raw) if raw.exists() else None
    if done is None or not work.exists():
        shutil.rmtree(work, ignore_errors=True)
        work.with_suffix(".report.json").unlink(missing_ok=True)
        done = {"kind": "finetune", "start": start, "method": method, "seed": seed, "points": [], "episodes": []}
    settings = preset(method)
    steps = done["points"][-1]["steps"] if done["points"] else 0
    while steps < options.steps:
        steps = min(steps + options.part_steps, options.steps)
        report = work.with_suffix(".report.json")
        settings_of_part = [
            f"replay.offline={data}",
            f"policy.bundle={bundle}",
            f"run.directory={work}",
            "run.existing=resume",
            f"run.seed={seed}",
            f"run.steps={steps}",
            f"run.evaluate_episodes={options.episodes}",
            *settings,
            *options.set,
            *options.finetune_set,
        ]
        if not report.exists() or read(report)["online_transitions"] < steps:
            call(options, start, name, ["run", "--quiet", "--report", str(report)], settings_of_part)
        found = read(report)
        if found["online_transitions"] < steps:
            sys.exit(f"{name} was stopped at {found['online_transitions']} of {steps} steps; start again to go on")
        if not done["points"]:
            done["points"].append({"steps": 0, "updates": 0, "returns": found["before"]})
        point = {"steps": steps, "updates": found["updates"], "returns": found["after"]}
        if start in GANTRY and not any(setting in ("replay.sampler=online", "replay.offline=") for setting in settings):
            point["by_source"] = by_source(options, start, name, settings_of_part)
        done["points"].append(point | {key: found[key] for key in ("offline_share", "losses", "updates_per_cpu_second")})
        done["episodes"] += [[e["at_step"], e["episode_return"]] for e in found["episodes"]]
        done["set"] = settings + options.set + options.finetune_set
        write(raw, done)


def main():
    options = arguments()
    for seed in options.seeds:
        if options.published:
            data = data_of(options, "medium")
            for method in options.methods:
                finetune(options, "published", options.published, data, method, seed)
        for start in options.starts:
            bundle = pretrain(options, start, seed if options.pretrain_seed is None else options.pretrain_seed)
            for method in options.methods:
                finetune(options, start, bundle, data_of(options, start), method, seed)
    render.pages(options.raw, options.docs)


if __name__ == "__main__":
    main()
