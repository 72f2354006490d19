#!/usr/bin/env python3
"""Data sets of other people's packages against `fieldtune data import` and `fieldtune data export`.

Makes small sets with the packages themselves (h5py in the layouts of D4RL and robomimic, Minari, LeRobot), imports them
and compares every value; exports one as a LeRobot set and reads it back with LeRobotDataset, and with pyarrow alone.
Prints a table and ends with 1 when a value differs or nothing could be tried.

usage: data_sets.py [--program target/release/fieldtune] [--work runs/interop/sets] [--fixtures tests/data/sets]

Needs (see docs/data-sets.md): numpy h5py; and for each part that is to be tried: minari pillow, pyarrow, lerobot 0.4.4.
What is missing is skipped and said. --fixtures writes the tiny files that the Rust tests read.
"""
import argparse, json, os, shutil, subprocess, sys, warnings

import numpy as np

warnings.filterwarnings("ignore")
table = []


def run(args, *command):
    done = subprocess.run([args.program, "data", *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"fieldtune data {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def compare(name, judge, expected, got):
    """Columns of equal names; every value as float32 must be the same."""
    differ = [k for k, v in expected.items() if not np.array_equal(np.asarray(v), np.asarray(got[k]).astype(np.asarray(v).dtype))]
    table.append((name, judge, len(expected["rewards"]), ", ".join(differ)))


def steps(seed=0, lengths=(7, 5, 8), observation=5, action=2):
    """Episodes in the columns of fieldtune's NPZ: the second ended, the others were cut."""
    rng, n = np.random.default_rng(seed), sum(lengths)
    ends = np.cumsum(lengths)
    last = np.isin(np.arange(1, n + 1), ends)
    ended = np.arange(1, n + 1) == ends[1]
    jitter = rng.integers(-900, 900, n)
    return {
        "observations": rng.standard_normal((n, observation)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (n, action)).astype(np.float32),
        "rewards": rng.standard_normal(n).astype(np.float32),
        "terminals": ended, "timeouts": last & ~ended, "episode_ends": ends,
        "final_observations": rng.standard_normal((len(lengths), observation)).astype(np.float32),
        "capture_us": 1_000_000 + 50_000 * np.arange(n) + jitter,
    }


def episodes(data):
    for k, end in enumerate(data["episode_ends"]):
        start = data["episode_ends"][k - 1] if k else 0
        yield k, slice(start, end)


def without(data, *names):
    return {k: v for k, v in data.items() if k not in names}


def imported(args, name, judge, source, expected, *options):
    out = os.path.join(args.work, f"{name}.npz")
    run(args, "import", source, "--out", out, *options)
    got = dict(np.load(out))
    compare(name, judge, expected, got)
    extra = set(got) - set(expected) - {"episode_ends", "timeouts", "terminals"}
    assert not extra, f"{name}: {extra} come from nowhere"
    if args.fixtures:
        os.makedirs(args.fixtures, exist_ok=True)
        target = os.path.join(args.fixtures, name + (os.path.splitext(source)[1] or ""))
        if os.path.isdir(source):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        np.savez_compressed(os.path.join(args.fixtures, f"{name}.npz"), **expected)


def d4rl(args):
    import h5py
    data, judge = steps(), f"h5py {h5py.__version__}"
    path = os.path.join(args.work, "d4rl.hdf5")
    with h5py.File(path, "w") as f:
        for name in ("observations", "actions", "rewards", "terminals", "timeouts"):
            f.create_dataset(name, data=data[name], compression="gzip")
        f["infos/qpos"] = np.zeros((len(data["rewards"]), 3))
        f["metadata/algorithm"] = "SAC"
    imported(args, "d4rl", judge, path, without(data, "final_observations", "capture_us"))
    # The first releases had no timeouts; episodes of locomotion were cut at 1000 steps. Here: 8.
    data = steps(1, (8, 4, 8))
    path = os.path.join(args.work, "d4rl_v0.hdf5")
    with h5py.File(path, "w") as f:
        for name in ("observations", "actions", "terminals"):
            f.create_dataset(name, data=data[name], compression="lzf", shuffle=True, fletcher32=True)
        f["rewards"] = data["rewards"][:, None].astype(np.float64)
        following = np.roll(data["observations"], -1, 0)
        for k, steps_ in episodes(data):
            following[steps_.stop - 1] = data["final_observations"][k]
        f["next_observations"] = following
    imported(args, "d4rl_v0", judge, path, without(data, "capture_us"), "--ends", "8")


def robomimic(args):
    import h5py
    data = steps(2)
    path = os.path.join(args.work, "robomimic.hdf5")
    with h5py.File(path, "w") as f:
        f.create_group("data").attrs["env_args"] = json.dumps({"env_name": "Lift"})
        for k, steps_ in episodes(data):
            demo = f.create_group(f"data/demo_{k}")
            demo.attrs["num_samples"] = steps_.stop - steps_.start
            observation = data["observations"][steps_]
            following = np.concatenate([observation[1:], data["final_observations"][k][None]])
            for group, values in (("obs", observation), ("next_obs", following)):
                demo[f"{group}/robot0_eef_pos"] = values[:, :3].astype(np.float64)
                demo[f"{group}/object"] = values[:, 3:]
                demo.create_dataset(f"{group}/agentview_image", data=np.zeros((len(values), 4, 4, 3), np.uint8),
                                    compression="gzip")
            demo["actions"], demo["rewards"] = data["actions"][steps_].astype(np.float64), data["rewards"][steps_]
            demo["dones"] = data["terminals"][steps_].astype(np.int64)
        f["mask/train"] = np.array([b"demo_0", b"demo_1"])
    imported(args, "robomimic", f"h5py {h5py.__version__}", path, without(data, "capture_us"), "--ends", "terminated",
             "--observation", "robot0_eef_pos", "--observation", "object")


def minari(args):
    os.environ["MINARI_DATASETS_PATH"] = os.path.abspath(os.path.join(args.work, "minari"))
    shutil.rmtree(os.environ["MINARI_DATASETS_PATH"], ignore_errors=True)
    import gymnasium, minari
    from minari.data_collector import EpisodeBuffer
    data = steps(3)
    box = lambda n, bound: gymnasium.spaces.Box(-bound, bound, (n,), np.float32)
    buffers = [EpisodeBuffer(
        id=k, observations=np.concatenate([data["observations"][s], data["final_observations"][k][None]]),
        actions=data["actions"][s], rewards=data["rewards"][s].astype(np.float64),
        terminations=data["terminals"][s], truncations=data["timeouts"][s], infos={}) for k, s in episodes(data)]
    for form in ("hdf5", "parquet"):
        minari.create_dataset_from_buffers(f"fieldtune/{form}-v0", buffers, observation_space=box(5, np.inf),
                                           action_space=box(2, 1), data_format=form)
        source = os.path.join(os.environ["MINARI_DATASETS_PATH"], "fieldtune", f"{form}-v0")
        imported(args, f"minari_{form}", f"minari {minari.__version__}", source, without(data, "capture_us"))


def exported(args):
    """A set with stamps and last observations, as a LeRobot folder; returns both."""
    data = steps(4)
    npz, folder = os.path.join(args.work, "steps.npz"), os.path.join(args.work, "lerobot_export")
    np.savez(npz, **data)
    shutil.rmtree(folder, ignore_errors=True)
    run(args, "export", npz, "--out", folder, "--task", "swing up")
    return data, folder


def pyarrow_reads_our_lerobot_set(args):
    import pyarrow
    import pyarrow.parquet as pq
    data, folder = exported(args)
    rows = pq.read_table(os.path.join(folder, "data/chunk-000/file-000.parquet")).to_pydict()
    with open(os.path.join(folder, "meta/info.json")) as f:
        info = json.load(f)
    assert set(rows) == set(info["features"]) and info["fps"] == 20 and info["total_frames"] == len(rows["index"])
    meta = pq.read_table(os.path.join(folder, "meta/episodes/chunk-000/file-000.parquet")).to_pydict()
    assert meta["dataset_to_index"] == list(data["episode_ends"]) and meta["tasks"] == [["swing up"]] * 3
    tasks = pq.read_table(os.path.join(folder, "meta/tasks.parquet"))
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    check_rows("LeRobot export by pyarrow", f"pyarrow {pyarrow.__version__}", data, rows)


def check_rows(name, judge, data, rows):
    got = {"observations": rows["observation.state"], "actions": rows["action"], "rewards": rows["next.reward"],
           "terminals": rows["next.terminated"], "timeouts": rows["next.truncated"], "capture_us": rows["capture_us"],
           "final_observations": np.asarray(rows["next.observation.state"])[np.asarray(rows["next.done"])]}
    compare(name, judge, without(data, "episode_ends"), {k: np.asarray(v) for k, v in got.items()})
    start = np.repeat(np.r_[0, data["episode_ends"][:-1]], np.diff(np.r_[0, data["episode_ends"]]))
    seconds = (data["capture_us"] - data["capture_us"][start]) * 1e-6
    assert np.abs(np.asarray(rows["timestamp"]) - seconds).max() < 1e-6, "timestamps are not the true ones"


def lerobot(args):
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    from importlib.metadata import version
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    judge = f"lerobot {version('lerobot')}"
    data, folder = exported(args)
    opened = LeRobotDataset("fieldtune/export", root=folder)
    items = [opened[i] for i in range(len(opened))]
    assert opened.num_episodes == 3 and items[0]["task"] == "swing up"
    rows = {name: np.stack([np.asarray(item[name]) for item in items]) for name in opened.features}
    check_rows("LeRobot export by LeRobotDataset", judge, data, rows)
    # The other way: a set that LeRobot wrote. It has neither ends nor last observations, and stamps from its rate.
    made = os.path.join(args.work, "lerobot_made")
    shutil.rmtree(made, ignore_errors=True)
    feature = lambda n: {"dtype": "float32", "shape": (n,), "names": None}
    one = lambda kind: {"dtype": kind, "shape": (1,), "names": None}
    writer = LeRobotDataset.create("fieldtune/made", fps=20, root=made, use_videos=False, features={
        "observation.state": feature(5), "action": feature(2), "next.reward": one("float32"), "next.done": one("bool")})
    for k, steps_ in episodes(data):
        for i in range(steps_.start, steps_.stop):
            writer.add_frame({
                "observation.state": data["observations"][i], "action": data["actions"][i],
                "next.reward": data["rewards"][i:i + 1], "next.done": np.array([i == steps_.stop - 1]), "task": "t"})
        writer.save_episode()
    writer.finalize()
    expected = without(data, "final_observations")
    expected["terminals"], expected["timeouts"] = np.zeros_like(data["terminals"]), data["terminals"] | data["timeouts"]
    expected["capture_us"] = np.concatenate([
        np.rint((np.arange(s.stop - s.start) / 20).astype(np.float32).astype(np.float64) * 1e6).astype(np.int64)
        for _, s in episodes(data)])
    imported(args, "lerobot_made", judge, made, expected, "--ends", "truncated")


def frames(data, width=16, height=12):
    """Smooth images, so that a video keeps them nearly, each different from the others."""
    y, x = np.mgrid[:height, :width]
    grey = lambda k: np.stack([(x * 9 + 11 * k) % 256, (y * 13 + 29 * k) % 256, (x * 3 + y * 5 + 53 * k) % 256], -1)
    return np.stack([grey(k) for k in range(len(data["rewards"]))]).astype(np.uint8)


def pixels_of(opened, name):
    """What LeRobotDataset gives of a camera, as bytes: it holds colours in [0, 1], channels first."""
    return np.stack([np.rint(np.asarray(opened[i][name]) * 255).astype(np.uint8).transpose(1, 2, 0)
                     for i in range(len(opened))])


def lerobot_images(args):
    """Our frames read by LeRobotDataset; frames that LeRobot wrote, as images and as a video, read by us."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    from importlib.metadata import version
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    judge, camera = f"lerobot {version('lerobot')}", "observation.images.front"
    data = steps(5)
    images = frames(data)
    npz, folder, back = (os.path.join(args.work, name) for name in ("seen.npz", "seen_export", "seen_back.npz"))
    shutil.rmtree(folder, ignore_errors=True)
    np.savez(npz, **data, images=images, final_images=images[:3])
    run(args, "export", npz, "--out", folder)
    opened = LeRobotDataset("fieldtune/seen", root=folder)
    table.append(("our frames by LeRobotDataset", judge, len(images),
                  "" if np.array_equal(pixels_of(opened, "observation.images.camera"), images) else "images"))
    mean = opened.meta.stats["observation.images.camera"]["mean"]
    assert mean.shape == (3, 1, 1) and np.allclose(mean[:, 0, 0], images.mean((0, 1, 2)) / 255), "statistics"
    run(args, "import", folder, "--out", back)
    hashes = [json.loads(run(args, "inspect", path, "--json"))["values_sha256"] for path in (npz, back)]
    table.append(("our frames, out and in", "SHA-256", len(images), "" if hashes[0] == hashes[1] else "the hash"))

    one = lambda kind, n=1: {"dtype": kind, "shape": (n,), "names": None}
    for kind in ("image", "video"):
        name = {"image": "lerobot_images", "video": "lerobot_video"}[kind]
        made = os.path.join(args.work, name)
        shutil.rmtree(made, ignore_errors=True)
        # A small set as a video is larger than it has to be: 64 x 48, so that the codec has blocks to work on.
        written = images if kind == "image" else frames(data, 64, 48)
        shape = {"dtype": kind, "shape": written.shape[1:], "names": ["height", "width", "channels"]}
        writer = LeRobotDataset.create(f"fieldtune/{name}", fps=20, root=made, use_videos=kind == "video", features={
            "observation.state": one("float32", 5), "action": one("float32", 2), "next.reward": one("float32"),
            "next.done": one("bool"), camera: shape})
        for _, steps_ in episodes(data):
            for i in range(steps_.start, steps_.stop):
                writer.add_frame({
                    "observation.state": data["observations"][i], "action": data["actions"][i], camera: written[i],
                    "next.reward": data["rewards"][i:i + 1], "next.done": np.array([i == steps_.stop - 1]), "task": "t"})
            writer.save_episode()
        writer.finalize()
        expected = without(data, "final_observations")
        expected["terminals"], expected["timeouts"] = np.zeros_like(data["terminals"]), data["terminals"] | data["timeouts"]
        expected["capture_us"] = np.concatenate([
            np.rint((np.arange(s.stop - s.start) / 20).astype(np.float32).astype(np.float64) * 1e6).astype(np.int64)
            for _, s in episodes(data)])
        seen = pixels_of(LeRobotDataset(f"fieldtune/{name}", root=made, video_backend="pyav"), camera)
        expected["images"] = seen
        if kind == "image":
            assert np.array_equal(seen, images)
            imported(args, name, judge, made, expected, "--ends", "truncated")
            continue
        if shutil.which("ffmpeg") is None:
            print("skipped: a video that LeRobot made: ffmpeg is not on the PATH")
            continue
        # Two decoders interpolate colours differently: how much is said, and must be small.
        out = os.path.join(args.work, f"{name}.npz")
        run(args, "import", made, "--out", out, "--ends", "truncated")
        got = np.load(out)["images"].astype(int)
        off = np.abs(got - seen)
        print(f"{name}: images differ from LeRobotDataset's by {off.mean():.3f} on average, {off.max()} at most, of 255; "
              f"another step's by {np.abs(np.roll(got, 1, 0) - seen).mean():.1f}")
        assert off.mean() < 2
        imported(args, name, judge, made, without(expected, "images"), "--ends", "truncated", "--camera", "none")
        if args.fixtures:
            np.savez_compressed(os.path.join(args.fixtures, f"{name}.npz"), **expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/fieldtune")
    parser.add_argument("--work", default="runs/interop/sets")
    parser.add_argument("--fixtures")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    for part in (d4rl, robomimic, minari, pyarrow_reads_our_lerobot_set, lerobot, lerobot_images):
        try:
            part(args)
        except ImportError as error:
            print(f"skipped: {part.__name__}: {error}")
    print(f"\n{'data set':<34} {'by':<18} {'steps':>6}  columns that differ")
    for name, judge, rows, differ in table:
        print(f"{name:<34} {judge:<18} {rows:>6}  {differ or 'none'}")
    return int(not table or any(differ for *_, differ in table))


if __name__ == "__main__":
    sys.exit(main())
