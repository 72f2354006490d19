#!/usr/bin/env python3
"""Checkpoints of other people's packages against `fieldtune policy import` and `fieldtune policy act`.

Trains tiny agents with the real packages, keeps their files, imports them, and compares the actions of the package's
own code with ours on 1,000 observations; critics are compared through the imported weights. Prints a table and ends
with 1 when a difference is larger than allowed (1e-5 for imports, 1e-6 for ONNX).

usage: checkpoints.py [--program target/release/fieldtune] [--work runs/interop] [--onnxruntime LIB]
                      [--onnx FILE.onnx ...] [--corl cal_ql.py] [--fixtures tests/data/import]

Needs (see docs/importing.md): numpy onnx onnxruntime safetensors; and for each source that is to be tried: torch,
d3rlpy 2.8.1, stable-baselines3 2.9, CORL's algorithms/finetune/cal_ql.py as a file. What is missing is skipped and
said. --fixtures writes the tiny files that the Rust tests read.
"""
import argparse, importlib.abc, importlib.machinery, json, os, shutil, subprocess, sys, types, warnings, zipfile
from unittest.mock import MagicMock

import numpy as np

warnings.filterwarnings("ignore")
ROWS = 1000
table = []


def run(args, program, *command):
    done = subprocess.run([program, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"fieldtune {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def robot(args, observation, action):
    """A robot of these lengths as a configuration."""
    names = lambda prefix, n: json.dumps([f"{prefix}{i}" for i in range(n)])
    path = os.path.join(args.work, f"robot_{observation}_{action}.toml")
    with open(path, "w") as f:
        f.write(f'[robot]\nname = "interop"\n[robot.spaces]\nobservation = {names("o", observation)}\n'
                f'action = {names("a", action)}\n')
    return path


def compare(name, source, expected, got, allowed):
    difference = float(np.abs(expected.astype(np.float64) - got).max())
    table.append((name, source, len(expected), difference, allowed))


def act(args, target, observations, *options):
    obs, out = os.path.join(args.work, "obs.npy"), os.path.join(args.work, "act.npy")
    np.save(obs, observations.astype(np.float32))
    run(args, args.program, "policy", "act", target, "--obs", obs, "--out", out, *options)
    return np.load(out)


def safetensors_critic(bundle, network, inputs, member=0):
    """A critic of an imported bundle, by plain matrix products in float64."""
    from safetensors.numpy import load_file
    weights, x, layer = load_file(os.path.join(bundle, "weights.safetensors")), inputs.astype(np.float64), 0
    tensor = lambda part: weights[f"{network}.{part}{layer}"][member].astype(np.float64)
    while f"{network}.w{layer}" in weights:
        x = x @ tensor("w") + tensor("b")
        if f"{network}.scale{layer}" in weights:
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6) * tensor("scale") + tensor("shift")
        layer += 1
        if f"{network}.w{layer}" in weights:
            x = np.maximum(x, 0)
    return x[:, 0]


def exported(args, name, bundle, observations, expected):
    """The ONNX file that fieldtune wrote, by onnx.checker and Python's ONNX Runtime."""
    import onnx, onnxruntime
    path = os.path.join(args.work, f"{name}_exported.onnx")
    run(args, args.program, "policy", "export", bundle, "--onnx", path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = np.concatenate([session.run(["action"], {"obs": row[None]})[0] for row in observations])
    compare(f"{name} exported ONNX", f"onnxruntime {onnxruntime.__version__}", expected, got, 1e-5)


def imported(args, name, source, files, shape, expected, critics, observations, options=(), fixture=None):
    """Imports files, compares the actions and, where given, Q1 and Q2 at random actions in [-1, 1]."""
    bundle = os.path.join(args.work, f"bundle_{name}")
    shutil.rmtree(bundle, ignore_errors=True)
    print(run(args, args.program, "policy", "import", *files, "--config", robot(args, *shape), "--out", bundle, *options))
    compare(name, source, expected, act(args, bundle, observations), 1e-5)
    if critics is not None:
        actions, values = critics
        inputs = np.concatenate([observations, actions], 1)
        for network, value in zip(["critic1", "critic2", "target1", "target2"], values):
            got = safetensors_critic(bundle, network, inputs)
            compare(f"{name} {network}", source, value / np.maximum(1, np.abs(value)),
                    got / np.maximum(1, np.abs(value)), 1e-5)
    exported(args, name, bundle, observations, expected)
    if args.fixtures and fixture:
        os.makedirs(args.fixtures, exist_ok=True)
        keep(files[0], os.path.join(args.fixtures, fixture))
        stem = os.path.join(args.fixtures, fixture.replace(".", "_"))
        for suffix, values in (("observations", observations[:16]), ("actions", expected[:16])):
            np.save(f"{stem}_{suffix}.npy", values.astype(np.float32))


def keep(file, fixture):
    """Copies a file; facts about this machine stay out of the repository."""
    if not fixture.endswith(".zip"):
        shutil.copy(file, fixture)
        return
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(fixture, "w") as target:
        for name in source.namelist():
            if name != "system_info.txt":
                target.writestr(zipfile.ZipInfo(name), source.read(name))


def onnx_files(args):
    import onnxruntime
    for path in args.onnx:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed, outputs = session.get_inputs()[0], [o.name for o in session.get_outputs()]
        output = next((o for o in ("action", "continuous_actions") if o in outputs), outputs[0])
        observations = np.random.default_rng(1).standard_normal((ROWS, feed.shape[1])).astype(np.float32)
        expected = np.concatenate([session.run([output], {feed.name: row[None]})[0] for row in observations])
        got = act(args, path, observations, "--onnxruntime", args.onnxruntime)
        compare(os.path.basename(path), f"onnxruntime {onnxruntime.__version__}", expected, got, 1e-6)


def d3rlpy_agents(args):
    import d3rlpy, torch
    d3rlpy.seed(1)
    source, rng = f"d3rlpy {d3rlpy.__version__}", np.random.default_rng(2)
    n, shape = 400, (5, 2)
    data = d3rlpy.dataset.MDPDataset(
        (rng.standard_normal((n, shape[0])) * [1, 2, 3, 0.1, 5] + 1).astype(np.float32),
        rng.uniform(-1, 1, (n, shape[1])).astype(np.float32), rng.standard_normal(n).astype(np.float32),
        np.zeros(n, np.float32), timeouts=(np.arange(n) % 50 == 49).astype(np.float32))
    observations = (rng.standard_normal((ROWS, shape[0])) * [1, 2, 3, 0.1, 5] + 1).astype(np.float32)
    actions = rng.uniform(-1, 1, (ROWS, shape[1])).astype(np.float32)
    scalers = {"none": None, "standard": d3rlpy.preprocessing.StandardObservationScaler(),
               "min_max": d3rlpy.preprocessing.MinMaxObservationScaler()}
    for config in (d3rlpy.algos.CQLConfig, d3rlpy.algos.SACConfig, d3rlpy.algos.CalQLConfig):
        for scaler, value in scalers.items():
            kind = config.get_type()
            if kind != "cql" and scaler != "standard":
                continue
            encoder = d3rlpy.models.VectorEncoderFactory([16, 8])
            agent = config(actor_encoder_factory=encoder, critic_encoder_factory=encoder, batch_size=32,
                           observation_scaler=value).create(device="cpu:0")
            agent.fit(data, n_steps=60, n_steps_per_epoch=60, show_progress=False,
                      logger_adapter=d3rlpy.logging.NoopAdapterFactory())
            name = f"d3rlpy_{kind}_{scaler}"
            path = os.path.join(args.work, f"{name}.d3")
            agent.save(path)
            x = torch.tensor(observations)
            scaled = agent.observation_scaler.transform(x) if agent.observation_scaler else x
            with torch.no_grad():
                values = [q(scaled, torch.tensor(actions)).q_value.numpy()[:, 0]
                          for funcs in (agent.impl.modules.q_funcs, agent.impl.modules.targ_q_funcs) for q in funcs]
            expected = agent.predict(observations)
            fixture = "d3rlpy_cql.d3" if (kind, scaler) == ("cql", "standard") else None
            imported(args, name, source, [path], shape, expected, (actions, values), observations, fixture=fixture)
            if fixture:
                model, params = os.path.join(args.work, f"{name}.pt"), os.path.join(args.work, f"{name}.json")
                agent.save_model(model)
                with open(params, "w") as f:
                    f.write(d3rlpy.base.LearnableConfigWithShape(
                        observation_shape=shape[:1], action_size=shape[1], config=agent.config).serialize())
                imported(args, f"{name}_pt", source, [model], shape, expected, (actions, values), observations,
                         ["--params", params])
                try:
                    # d3rlpy asks for the exporter that newer PyTorch no longer takes by default.
                    export, torch.onnx.export = torch.onnx.export, lambda *a, **k: export(*a, **{**k, "dynamo": False})
                    onnx = os.path.join(args.work, f"{name}.onnx")
                    agent.save_policy(onnx)
                    got = act(args, onnx, observations, "--onnxruntime", args.onnxruntime)
                    compare(f"{name}.onnx", source, expected, got, 1e-5)
                    args.onnx.append(onnx)
                    if args.fixtures:
                        shutil.copy(onnx, os.path.join(args.fixtures, "d3rlpy_cql.onnx"))
                finally:
                    torch.onnx.export = export


def sb3_agent(args):
    import gymnasium, stable_baselines3 as sb3, torch

    class Box(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.count = 0
            return self.np_random.standard_normal(4).astype(np.float32), {}

        def step(self, action):
            self.count += 1
            observation = self.np_random.standard_normal(4).astype(np.float32)
            return observation, float(-np.square(action).sum()), False, self.count == 20, {}

    model = sb3.SAC("MlpPolicy", Box(), policy_kwargs=dict(net_arch=[16, 8]), learning_starts=50, seed=3, device="cpu")
    model.learn(150)
    path = os.path.join(args.work, "sb3_sac.zip")
    model.save(path)
    rng = np.random.default_rng(4)
    observations = rng.standard_normal((ROWS, 4)).astype(np.float32)
    actions = rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32)
    with torch.no_grad():
        values = [q[:, 0].numpy() for critic in (model.critic, model.critic_target)
                  for q in critic(torch.tensor(observations), torch.tensor(actions))]
    expected = model.predict(observations, deterministic=True)[0]
    imported(args, "sb3_sac", f"stable-baselines3 {sb3.__version__}", [path], (4, 2), expected, (actions, values),
             observations, ["--raw-state"], "sb3_sac.zip")


def corl_module(path):
    # CORL's file imports environments and loggers that nothing here needs.
    for name in ("d4rl", "gym", "pyrallis", "wandb"):
        module = types.ModuleType(name)
        module.wrap = lambda *a, **k: (lambda f: f)
        module.Env = object
        sys.modules[name] = module
    corl = sys.modules["corl"] = types.ModuleType("corl")
    with open(path) as f:
        exec(compile(f.read(), path, "exec"), corl.__dict__)
    return corl


def corl_agents(args):
    import torch
    if not args.corl:
        raise ImportError("--corl names no file")
    corl = corl_module(args.corl)
    corl_agent(args, corl, torch, "corl_cal_ql", None)
    # The same trainer with networks that are small enough to be kept with the tests.
    corl_agent(args, corl, torch, "corl_cal_ql_small", [8, 8])


def corl_agent(args, corl, torch, name, hidden):
    torch.manual_seed(5)
    rng, shape, scale = np.random.default_rng(6), (7, 3), 1.5
    actor = corl.TanhGaussianPolicy(*shape, scale, log_std_multiplier=0.7, log_std_offset=-1.3, orthogonal_init=True)
    critics = [corl.FullyConnectedQFunction(*shape, True, 2) for _ in range(2)]

    def small(inputs, outputs):
        widths, layers = [inputs, *hidden, outputs], []
        for one, two in zip(widths, widths[1:]):
            layers += [torch.nn.Linear(one, two), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1])

    if hidden:
        actor.base_network = small(shape[0], 2 * shape[1])
        for critic in critics:
            critic.network = small(sum(shape), 1)
    adam = lambda module: torch.optim.Adam(module.parameters(), 1e-3)
    trainer = corl.CalQL(critics[0], adam(critics[0]), critics[1], adam(critics[1]), actor, adam(actor),
                         target_entropy=-3.0, bc_steps=0, cql_lagrange=False, device="cpu")
    mean = rng.standard_normal(shape[0])
    states = (rng.standard_normal((256, shape[0])) * rng.uniform(0.2, 5, shape[0]) + mean).astype(np.float32)
    mean, std = corl.compute_mean_std(states, 1e-3)
    scaled = corl.normalize_states(states, mean, std)
    tensor = lambda x: torch.tensor(x, dtype=torch.float32)
    for _ in range(5):
        trainer.train([tensor(scaled), tensor(rng.uniform(-1, 1, (256, 3))), tensor(rng.standard_normal((256, 1))),
                       tensor(scaled[::-1].copy()), tensor(np.zeros((256, 1))), tensor(rng.standard_normal((256, 1)))])
    path = os.path.join(args.work, f"{name}.pt")
    torch.save(trainer.state_dict(), path)
    files = [os.path.join(args.work, f"{name}_{what}.npy") for what in ("mean", "std")]
    for file, values in zip(files, (mean, std)):
        np.save(file, values)
        if args.fixtures and hidden:
            os.makedirs(args.fixtures, exist_ok=True)
            np.save(os.path.join(args.fixtures, "corl_" + file.rsplit("_", 1)[1]), values.astype(np.float32))
    observations = (rng.standard_normal((ROWS, shape[0])) * std + mean).astype(np.float32)
    actions = rng.uniform(-1, 1, (ROWS, shape[1])).astype(np.float32)
    actor.eval()
    inputs = corl.normalize_states(observations, mean, std)
    expected = np.stack([actor.act(row) for row in inputs]) / scale
    with torch.no_grad():
        values = [q(tensor(inputs), scale * tensor(actions)).numpy() for q in
                  (trainer.critic_1, trainer.critic_2, trainer.target_critic_1, trainer.target_critic_2)]
        output = actor.base_network(tensor(inputs[:1]))
        log_std = actor.log_std_multiplier() * output[:, 3:] + actor.log_std_offset()
    imported(args, name, "CORL cal_ql.py", [path], shape, expected, (actions, values), observations,
             ["--state-mean", files[0], "--state-std", files[1], "--action-scale", scale],
             "corl_cal_ql.pt" if hidden else None)
    np.save(os.path.join(args.work, "obs.npy"), observations[:1])
    text = run(args, args.program, "policy", "act", f"{args.work}/bundle_{name}", "--obs", f"{args.work}/obs.npy")
    std_line = next(line for line in text.splitlines() if line.startswith("std"))
    compare(f"{name} std", "CORL cal_ql.py", log_std.exp().numpy()[0],
            np.array(json.loads(std_line.removeprefix("std"))), 1e-5)


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that LeRobot imports and its SAC policy does not use."""
    NAMES = ("torchvision", "serial", "av", "imageio", "accelerate", "datasets", "deepdiff", "rerun", "cv2", "pynput")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = MagicMock()
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        return module

    def exec_module(self, module):
        pass


def lerobot_agent(args):
    import lerobot, torch
    sys.meta_path.insert(0, Absent())
    # The package itself would import every policy there is.
    policies = sys.modules["lerobot.policies"] = types.ModuleType("lerobot.policies")
    policies.__path__ = [os.path.join(lerobot.__path__[0], "policies")]
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.sac.configuration_sac import SACConfig
    from lerobot.policies.sac.modeling_sac import SACPolicy
    from importlib.metadata import version
    torch.manual_seed(7)
    config = SACConfig(input_features={"observation.state": PolicyFeature(FeatureType.STATE, (5,))},
                       output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
                       device="cpu", storage_device="cpu", latent_dim=8)
    policy = SACPolicy(config)
    with torch.no_grad():
        for parameter in policy.actor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    folder, onnx = os.path.join(args.work, "lerobot_sac"), os.path.join(args.work, "lerobot_sac.onnx")
    policy.save_pretrained(folder)
    observations = np.random.default_rng(8).standard_normal((ROWS, 5)).astype(np.float32)
    with torch.no_grad():
        means = policy.actor({"observation.state": torch.tensor(observations)})[2]
    exporter = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lerobot_actor.py")
    subprocess.run([sys.executable, exporter, folder, onnx, "--raw-state"], check=True)
    got = act(args, onnx, observations, "--onnxruntime", args.onnxruntime)
    compare("lerobot_sac by lerobot_actor.py", f"lerobot {version('lerobot')}", torch.tanh(means).numpy(), got, 1e-5)


def print_table():
    """Prints what was compared; 1 when something differs too much or nothing was compared."""
    print(f"\n{'file':<36} {'judged by':<26} {'rows':>5} {'largest difference':>19} {'allowed':>8}")
    for name, source, rows, difference, allowed in table:
        mark = "" if difference <= allowed else "  TOO LARGE"
        print(f"{name:<36} {source:<26} {rows:>5} {difference:>19.2e} {allowed:>8.0e}{mark}")
    return int(not table or any(difference > allowed for *_, difference, allowed in table))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/fieldtune")
    parser.add_argument("--work", default="runs/interop/files")
    parser.add_argument("--onnxruntime", default=".native/libonnxruntime.so")
    parser.add_argument("--onnx", nargs="*", default=[])
    parser.add_argument("--corl")
    parser.add_argument("--fixtures")
    parser.add_argument("--only", nargs="*", help="names of parts, such as sb3_agent")
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    for part in (d3rlpy_agents, sb3_agent, corl_agents, lerobot_agent, onnx_files):
        if args.only and part.__name__ not in args.only:
            continue
        try:
            part(args)
        except ImportError as error:
            print(f"skipped: {part.__name__}: {error}")
    return print_table()


if __name__ == "__main__":
    sys.exit(main())
