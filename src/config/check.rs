//! Ranges and contradictions of a parsed configuration. Every range is written so that NaN fails.

use super::{
    ActorLoss, CameraSource, ClockKind, Config, CriticLoss, Crops, CutReturns, DeviceKind, ImageStream, LinkKind,
    Order, PolicyEngine, PretrainMethod, Problem, SamplerKind, Start, TargetKind,
};

/// Share of a serial line that frames may fill.
const MOST_OF_A_LINE: f64 = 0.7;
/// One start bit, eight of data, one stop bit.
const BITS_PER_BYTE: f64 = 10.0;
/// How often the host asks for the robot's time.
const TIME_EXCHANGES_HZ: f64 = 10.0;

struct Checks(Vec<Problem>);

impl Checks {
    fn need(&mut self, ok: bool, key: &str, value: impl std::fmt::Display, message: &str) {
        if !ok {
            let message = format!("{value}: {message}");
            self.0.push(Problem { place: String::new(), key: key.into(), message });
        }
    }
}

/// Every value that is out of range or contradicts another.
pub(super) fn check(c: &Config) -> Vec<Problem> {
    let mut checks = Checks(Vec::new());
    run_and_robot(c, &mut checks);
    camera(c, &mut checks);
    replay(c, &mut checks);
    swap(c, &mut checks);
    fleet(c, &mut checks);
    learner(c, &mut checks);
    pace(c, &mut checks);
    method(c, &mut checks);
    residual(c, &mut checks);
    pretrain(c, &mut checks);
    checks.0
}

fn run_and_robot(c: &Config, checks: &mut Checks) {
    let robot = &c.robot;
    checks.need(c.run.steps > 0, "run.steps", c.run.steps, "must be at least 1");
    let hz = robot.control_hz;
    checks.need(hz > 0.0 && hz <= 2000.0, "robot.control_hz", hz, "must lie in (0, 2000]");
    let (n, m) = (robot.spaces.observation_dim(), robot.spaces.action_dim());
    let fits =
        n > 0 && m > 0 && n <= firmware_bridge::MAX_OBSERVATION && m <= firmware_bridge::MAX_ACTION && n + m <= 49;
    checks.need(
        fits,
        "robot.spaces",
        format_args!("{n} observation and {m} action entries"),
        "a STATE frame carries at least one of each, at most 48 and 24, and at most 49 together",
    );
    checks.need(robot.command_valid_ms > 0, "robot.command_valid_ms", robot.command_valid_ms, "must be at least 1");
    checks.need(robot.timeout_ms > 0, "robot.timeout_ms", robot.timeout_ms, "must be at least 1");
    link_rate(c, checks);
    let nowhere = robot.address.is_empty() && c.simulator.task.is_empty();
    checks.need(!nowhere, "robot.address", "empty", "needs an address, or simulator.task to start a simulated robot");
    let (script, shown) = (&c.simulator.script, format!("{:?}", c.simulator.script));
    let levels = script.iter().all(|level| (0.0..=2.0).contains(level));
    checks.need(levels, "simulator.script", &shown, "standard deviations must lie in [0, 2]");
    let started = script.is_empty() || robot.address.is_empty();
    checks.need(
        started,
        "simulator.script",
        &shown,
        "is for a simulator that the run starts, but robot.address is set",
    );
    let period_ms = 1000.0 / hz;
    let realtime = c.run.clock == ClockKind::Realtime;
    checks.need(
        !realtime || f64::from(robot.command_valid_ms) >= period_ms,
        "robot.command_valid_ms",
        robot.command_valid_ms,
        "shorter than one control period: the robot would stop between two commands",
    );
    let s = &c.safety;
    checks.need(
        s.action_limit > 0.0 && s.action_limit <= 1.0,
        "safety.action_limit",
        s.action_limit,
        "must lie in (0, 1]",
    );
    checks.need(
        s.slew_per_step > 0.0 && s.slew_per_step <= 2.0,
        "safety.slew_per_step",
        s.slew_per_step,
        "must lie in (0, 2]",
    );
    checks.need(s.stale_steps > 0, "safety.stale_steps", s.stale_steps, "must be at least 1");
    checks.need(
        s.lost_steps > s.stale_steps,
        "safety.lost_steps",
        s.lost_steps,
        "must be larger than safety.stale_steps",
    );
    checks.need(c.episode.max_steps > 0, "episode.max_steps", c.episode.max_steps, "must be at least 1");
    episode(c, checks);
    intervention(c, checks);
    let latency = c.realtime.cpu_dma_latency_us;
    checks.need(
        (-1..=1_000_000).contains(&latency),
        "realtime.cpu_dma_latency_us",
        latency,
        "must lie in -1 to 1000000",
    );
    checks.need(c.realtime.priority <= 99, "realtime.priority", c.realtime.priority, "must lie in 0 to 99");
    checks.need(c.policy.publish_every > 0, "policy.publish_every", c.policy.publish_every, "must be at least 1");
    let noise = c.policy.action_noise;
    checks.need((0.0..=10.0).contains(&noise), "policy.action_noise", noise, "must lie in [0, 10]");
    let needs_library = c.policy.engine == PolicyEngine::Onnxruntime && c.policy.onnxruntime.as_os_str().is_empty();
    checks.need(
        !needs_library,
        "policy.engine",
        "onnxruntime",
        "needs policy.onnxruntime = \"/path/libonnxruntime.so\"",
    );
}

fn camera(c: &Config, checks: &mut Checks) {
    let k = &c.camera;
    for (key, side) in [("camera.width", k.width), ("camera.height", k.height)] {
        checks.need((1..=1024).contains(&side), key, side, "must lie in 1 to 1024");
    }
    let has = |kind: fn(&CameraSource) -> bool| k.source.0.iter().any(kind);
    let count = k.source.0.len();
    checks.need(count <= 8, "camera.source", count, "at most 8 cameras");
    let [width, height] = k.source_size;
    let side = 0..=firmware_bridge::MAX_IMAGE_SIDE;
    let even = k.format != ImageStream::Yuyv || width % 2 == 0;
    let size = format_args!("[{width}, {height}]").to_string();
    let sized = side.contains(&width) && side.contains(&height) && (width == 0) == (height == 0) && even;
    checks.need(
        sized,
        "camera.source_size",
        &size,
        "sides lie in 1 to 4096, a row of yuyv has an even width; [0, 0]: as they come",
    );
    let streams = has(|s| matches!(s, CameraSource::Unix(_) | CameraSource::Tcp(_) | CameraSource::Pipe(_)));
    let raw = streams && matches!(k.format, ImageStream::Rgb | ImageStream::Yuyv);
    let device = has(|s| matches!(s, CameraSource::V4l2(_)));
    let why = "must be given: raw images and a V4L2 device do not say their size";
    checks.need(width > 0 || !(raw || device), "camera.source_size", &size, why);
    let [x, y, w, h] = k.crop;
    let crop = format!("{:?}", k.crop);
    let whole = k.crop == [0; 4];
    let inside =
        |at: u16, length: u16, most: u16| length > 0 && (most == 0 || u32::from(at) + u32::from(length) <= most.into());
    checks.need(
        whole || inside(x, w, width) && inside(y, h, height),
        "camera.crop",
        &crop,
        "lies outside of the image",
    );
    let (w, h) = if whole { (width, height) } else { (w, h) };
    let smaller = (w == 0 || w >= k.width) && (h == 0 || h >= k.height);
    checks.need(smaller, "camera.crop", &crop, "smaller than camera.width x camera.height: images are never enlarged");
    let hz = k.rate_hz;
    checks.need(hz > 0.0 && hz <= 1000.0, "camera.rate_hz", hz, "must lie in (0, 1000]");
    checks.need(k.stale_ms <= 60_000, "camera.stale_ms", k.stale_ms, "must be at most 60000");
    checks.need(k.align_ms <= 10_000, "camera.align_ms", k.align_ms, "must be at most 10000");
    let known = k.intrinsics.iter().all(|v| v.is_finite());
    checks.need(known, "camera.intrinsics", format!("{:?}", k.intrinsics), "must be finite");
    let lacks = device && cfg!(not(feature = "camera-v4l2"));
    checks.need(!lacks, "camera.source", "v4l2", "this build has no V4L2; build with --features camera-v4l2");
    let alone = has(|s| *s == CameraSource::Simulator) && !c.robot.address.is_empty();
    checks.need(
        !alone,
        "camera.source",
        "simulator",
        "the run starts no simulator: robot.address is set; use \"unix:PATH\"",
    );
}

fn intervention(c: &Config, checks: &mut Checks) {
    let i = &c.intervention;
    let age = i.max_age_ms;
    checks.need((1..=10_000).contains(&age), "intervention.max_age_ms", age, "must lie in 1 to 10000");
    checks.need(i.blend_ms <= 10_000, "intervention.blend_ms", i.blend_ms, "must lie in 0 to 10000");
}

fn swap(c: &Config, checks: &mut Checks) {
    let s = &c.swap;
    checks.need(
        s.shadow_gate > 0.0 && s.shadow_gate <= 2.0,
        "swap.shadow_gate",
        s.shadow_gate,
        "must lie in (0, 2]; an action entry differs by at most 2",
    );
    checks.need(s.shadow_steps <= 10_000, "swap.shadow_steps", s.shadow_steps, "must be at most 10000");
    checks.need(s.return_drop >= 0.0, "swap.return_drop", s.return_drop, "must be at least 0");
    checks.need(
        s.limited_share > 0.0 && s.limited_share <= 1.0,
        "swap.limited_share",
        s.limited_share,
        "must lie in (0, 1]",
    );
    let most = super::MOST_TRIAL_EPISODES;
    checks.need(
        s.trial_episodes <= most,
        "swap.trial_episodes",
        s.trial_episodes,
        "must be at most 32: so many returns are kept",
    );
}

fn fleet(c: &Config, checks: &mut Checks) {
    let f = &c.fleet;
    let plain = |name: &str| {
        let fits = |ch: char| ch.is_ascii_alphanumeric() || "_-.".contains(ch);
        (1..=64).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('.')
    };
    let message = "must be 1 to 64 letters, digits, `_`, `-` or `.`, not beginning with `.`";
    checks.need(plain(&f.name), "fleet.name", &f.name, message);
    checks.need(f.robot.is_empty() || plain(&f.robot), "fleet.robot", &f.robot, message);
    let named = !c.learner.remote || !f.robot.is_empty() || plain(&c.robot.name);
    checks.need(named, "fleet.robot", "empty", &format!("is robot.name then, which {message}"));
    for (key, value) in [("fleet.connect", &f.connect), ("fleet.listen", &f.listen)] {
        let known = ["tcp/", "tls/"].iter().any(|kind| value.starts_with(kind)) && value.contains(':');
        checks.need(known, key, value, "must be tcp/HOST:PORT or tls/HOST:PORT");
    }
    let every = f.send_every_ms;
    checks.need((10..=60_000).contains(&every), "fleet.send_every_ms", every, "must lie in 10 to 60000");
    checks.need((2..=4096).contains(&f.batch_steps), "fleet.batch_steps", f.batch_steps, "must lie in 2 to 4096");
    let patience = f.timeout_ms;
    checks.need((100..=60_000).contains(&patience), "fleet.timeout_ms", patience, "must lie in 100 to 60000");
}

fn episode(c: &Config, checks: &mut Checks) {
    let e = &c.episode;
    checks.need(e.hold_steps > 0, "episode.hold_steps", e.hold_steps, "must be at least 1");
    for (key, value) in [
        ("episode.step_reward", e.step_reward),
        ("episode.success_reward", e.success_reward),
        ("episode.failure_reward", e.failure_reward),
    ] {
        checks.need(value.is_finite(), key, value, "must be finite");
    }
    let threshold = e.classifier_threshold;
    checks.need(threshold.is_finite(), "episode.classifier_threshold", threshold, "must be finite");
    let alone = !e.classifier.as_os_str().is_empty() && c.policy.onnxruntime.as_os_str().is_empty();
    checks.need(
        !alone,
        "episode.classifier",
        e.classifier.display(),
        "needs policy.onnxruntime = \"/path/libonnxruntime.so\"",
    );
    for (key, bounds) in [("episode.success", &e.success), ("episode.failure", &e.failure)] {
        for bound in bounds {
            let known = c.robot.spaces.observation.contains(&bound.entry);
            checks.need(known, key, &bound.entry, "is not an entry of robot.spaces.observation");
            checks.need(bound.min <= bound.max, key, bound.min, "min must not be above max");
        }
    }
}

/// A serial line that is nearly full delays every frame by more and more.
fn link_rate(c: &Config, checks: &mut Checks) {
    let robot = &c.robot;
    if robot.link != LinkKind::Serial {
        return;
    }
    let (n, m) = (robot.spaces.observation_dim(), robot.spaces.action_dim());
    let needed = firmware_bridge::stream_load(n, m, robot.control_hz, TIME_EXCHANGES_HZ);
    let share = needed * BITS_PER_BYTE / f64::from(robot.baud);
    let enough = needed * BITS_PER_BYTE / MOST_OF_A_LINE;
    checks.need(
        share <= MOST_OF_A_LINE,
        "robot.baud",
        robot.baud,
        &format!(
            "{n} observation and {m} action entries at {} Hz fill {:.0} % of the line, at most {:.0} % may be used: at \
             least {enough:.0} bits per second, or a lower robot.control_hz, or fewer entries",
            robot.control_hz,
            share * 100.0,
            MOST_OF_A_LINE * 100.0,
        ),
    );
}

fn replay(c: &Config, checks: &mut Checks) {
    let r = &c.replay;
    checks.need(r.resident_mb >= 64, "replay.resident_mb", r.resident_mb, "must be at least 64");
    checks.need(r.capacity >= 1024, "replay.capacity", r.capacity, "must be at least 1024");
    let share = r.initial_online_share;
    checks.need(share > 0.0 && share < 1.0, "replay.initial_online_share", share, "must lie in (0, 1)");
    let fixed = r.offline_share;
    checks.need(fixed > 0.0 && fixed < 1.0, "replay.offline_share", fixed, "must lie in (0, 1)");
    let person = r.intervention_share;
    checks.need((0.0..1.0).contains(&person), "replay.intervention_share", person, "must lie in [0, 1)");
    let t = r.priority_temperature;
    checks.need(t > 0.0 && t.is_finite(), "replay.priority_temperature", t, "must be positive");
    let range = r.priority_min > 0.0 && r.priority_min < r.priority_max && r.priority_max.is_finite();
    checks.need(range, "replay.priority_min", r.priority_min, "must be positive and below replay.priority_max");
    checks.need(r.sync_every_s > 0.0, "replay.sync_every_s", r.sync_every_s, "must be positive");
    let without_offline = r.offline.as_os_str().is_empty() && c.learner.enabled;
    let lambda = r.trajectory_temperature;
    checks.need(lambda > 0.0 && lambda.is_finite(), "replay.trajectory_temperature", lambda, "must be positive");
    checks.need(r.trajectory_refresh > 0, "replay.trajectory_refresh", r.trajectory_refresh, "must be at least 1");
    for (kind, name) in [
        (SamplerKind::Balanced, "balanced"),
        (SamplerKind::Symmetric, "symmetric"),
        (SamplerKind::Trajectory, "trajectory"),
    ] {
        let alone = r.sampler == kind && without_offline;
        let why = "needs replay.offline: there is nothing to balance; use \"online\"";
        checks.need(!alone, "replay.sampler", name, why);
    }
}

fn learner(c: &Config, checks: &mut Checks) {
    let l = &c.learner;
    checks.need(l.batch_size > 0, "learner.batch_size", l.batch_size, "must be at least 1");
    trunk(c, checks);
    checks.need(l.threads > 0, "learner.threads", l.threads, "must be at least 1");
    checks.need(l.utd_ratio > 0.0 && l.utd_ratio <= 1000.0, "learner.utd_ratio", l.utd_ratio, "must lie in (0, 1000]");
    checks.need(l.burst_steps > 0, "learner.burst_steps", l.burst_steps, "must be at least 1");
    let multiplier = l.first_burst_multiplier;
    checks.need(
        multiplier >= 1.0 && multiplier.is_finite(),
        "learner.first_burst_multiplier",
        multiplier,
        "must be at least 1",
    );
    checks.need(l.warmup_steps > 0, "learner.warmup_steps", l.warmup_steps, "must be at least 1");
    checks.need(l.discount > 0.0 && l.discount < 1.0, "learner.discount", l.discount, "must lie in (0, 1)");
    checks.need(
        l.target_rate > 0.0 && l.target_rate <= 1.0,
        "learner.target_rate",
        l.target_rate,
        "must lie in (0, 1]",
    );
    for (key, rate) in [
        ("learner.actor_learning_rate", l.actor_learning_rate),
        ("learner.critic_learning_rate", l.critic_learning_rate),
        ("learner.temperature_learning_rate", l.temperature_learning_rate),
        ("learner.density_learning_rate", l.density_learning_rate),
    ] {
        checks.need((0.0..1.0).contains(&rate), key, rate, "must lie in [0, 1)");
    }
    checks.need(
        widths(&l.density_hidden),
        "learner.density_hidden",
        show(&l.density_hidden),
        "1 to 8 widths of 1 to 8192",
    );
    let alpha = l.initial_temperature;
    checks.need(alpha > 0.0 && alpha.is_finite(), "learner.initial_temperature", alpha, "must be positive");
    checks.need(l.log_std.min < l.log_std.max, "learner.log_std", l.log_std.min, "min must be below max");
    let cuda = l.device == DeviceKind::Cuda && cfg!(not(feature = "cuda"));
    checks.need(!cuda, "learner.device", "cuda", "this build has no CUDA; build with --features cuda or use \"cpu\"");
}

fn trunk(c: &Config, checks: &mut Checks) {
    let l = &c.learner;
    let channels = (1..=8).contains(&l.trunk_channels.len()) && l.trunk_channels.iter().all(|n| (1..=512).contains(n));
    checks.need(channels, "learner.trunk_channels", show(&l.trunk_channels), "1 to 8 widths of 1 to 512");
    let features = l.trunk_features;
    checks.need((1..=8192).contains(&features), "learner.trunk_features", features, "must lie in 1 to 8192");
    checks.need(l.shift_pixels <= 64, "learner.shift_pixels", l.shift_pixels, "must be at most 64");
    let each = l.crops == Crops::EachPass && l.shift_pixels == 0;
    checks.need(!each, "learner.crops", "each-pass", "has no effect with learner.shift_pixels = 0");
}

fn pace(c: &Config, checks: &mut Checks) {
    let share = 0.01..=1.0;
    let t = &c.thermal;
    for (key, value) in
        [("learner.max_utilisation", c.learner.max_utilisation), ("thermal.slow_utilisation", t.slow_utilisation)]
    {
        checks.need(share.contains(&value), key, value, "must lie in [0.01, 1]");
    }
    let every = t.read_every_s;
    checks.need((0.01..=60.0).contains(&every), "thermal.read_every_s", every, "must lie in [0.01, 60]");
    let gap = t.hysteresis_c;
    checks.need((0.0..=50.0).contains(&gap), "thermal.hysteresis_c", gap, "must lie in [0, 50]");
    checks.need((0.0..=150.0).contains(&t.slow_c), "thermal.slow_c", t.slow_c, "must lie in [0, 150]");
    let above = t.pause_c >= t.slow_c && t.pause_c <= 150.0;
    checks.need(above, "thermal.pause_c", t.pause_c, "must lie between thermal.slow_c and 150");
}

/// Settings of the method that have no meaning by themselves or beside each other. What depends on the networks is
/// checked where they are known.
fn method(c: &Config, checks: &mut Checks) {
    let l = &c.learner;
    checks.need(l.members <= 64, "learner.members", l.members, "must lie in 0 to 64");
    let actors = l.actors <= 1 || l.actors == l.members;
    checks.need(actors, "learner.actors", l.actors, "must be 0, 1 or learner.members");
    let steps = l.critic_steps;
    checks.need((1..=1000).contains(&steps), "learner.critic_steps", steps, "must lie in 1 to 1000");
    let subset = l.redq_subset;
    checks.need((1..=128).contains(&subset), "learner.redq_subset", subset, "must lie in 1 to 128");
    let twins = 2 * l.members;
    let enough = l.target_operator != TargetKind::Redq || l.redq_replacement || l.members == 0 || subset <= twins;
    let why = format!("more than the {twins} critics of learner.members; draw with redq_replacement = true or fewer");
    checks.need(enough, "learner.redq_subset", subset, &why);
    checks.need(
        l.cql_weight >= 0.0 && l.cql_weight.is_finite(),
        "learner.cql_weight",
        l.cql_weight,
        "must not be negative",
    );
    let actions = l.cql_actions;
    checks.need((1..=1000).contains(&actions), "learner.cql_actions", actions, "must lie in 1 to 1000");
    checks.need(l.awac_beta > 0.0 && l.awac_beta.is_finite(), "learner.awac_beta", l.awac_beta, "must be positive");
    penalty_and_anchor(c, checks);
    let clip = l.gradient_clip;
    checks.need(clip >= 0.0 && clip.is_finite(), "learner.gradient_clip", clip, "must be positive, or 0 for none");
    checks.need(l.target_entropy.is_finite(), "learner.target_entropy", l.target_entropy, "must be a number");
    let idle = l.zero_gradient_adam && steps == 1 && l.order == Order::Joint;
    checks.need(
        !idle,
        "learner.zero_gradient_adam",
        true,
        "has no effect when all networks step together: needs learner.critic_steps above 1 or learner.order = \"critics-first\"",
    );
    let alien = l.start == Start::Scratch && !l.carry_optimiser.as_os_str().is_empty();
    checks.need(
        !alien,
        "learner.carry_optimiser",
        l.carry_optimiser.display(),
        "belongs to pretrained networks, but learner.start is \"scratch\"",
    );
    let imitates = l.start == Start::Scratch && l.actor_loss != ActorLoss::Sac;
    let alone = imitates && c.replay.offline.as_os_str().is_empty();
    checks.need(
        !alone,
        "learner.actor_loss",
        "bc or awac",
        "imitates a new random policy: give replay.offline or learner.start = \"bundle\"",
    );
    let carried =
        l.start == Start::Scratch && c.replay.sampler == SamplerKind::Online && l.critic_loss != CriticLoss::Sac;
    checks.need(
        !carried,
        "learner.critic_loss",
        "cql or cal-ql",
        "a penalty against offline data that are neither in the networks (learner.start = \"scratch\") nor drawn (replay.sampler = \"online\")",
    );
}

fn penalty_and_anchor(c: &Config, checks: &mut Checks) {
    let l = &c.learner;
    let (temperature, gap) = (l.cql_temperature, l.cql_gap);
    checks.need(
        temperature > 0.0 && temperature.is_finite(),
        "learner.cql_temperature",
        temperature,
        "must be positive",
    );
    checks.need(gap >= 0.0 && gap.is_finite(), "learner.cql_gap", gap, "must not be negative");
    let penalised = l.critic_loss != CriticLoss::Sac && l.cql_weight > 0.0;
    checks.need(gap == 0.0 || penalised, "learner.cql_gap", gap, "there is no penalty to hold at it");
    let (weight, rate) = (l.anchor_weight, l.anchor_rate);
    checks.need(weight >= 0.0 && weight.is_finite(), "learner.anchor_weight", weight, "must not be negative");
    checks.need((0.0..=1.0).contains(&rate), "learner.anchor_rate", rate, "must lie in [0, 1]");
    checks.need(
        weight == 0.0 || l.actor_loss == ActorLoss::Sac,
        "learner.anchor_weight",
        weight,
        "imitating actors are held by the data; needs learner.actor_loss = \"sac\"",
    );
}

/// A residual's actors do not act by themselves: nothing that weighs their density against actions of others applies.
fn residual(c: &Config, checks: &mut Checks) {
    let l = &c.learner;
    if c.policy.base.as_os_str().is_empty() || !l.enabled {
        return;
    }
    let why = "must be \"sac\" for a residual (policy.base): its actors have no density of the recorded actions";
    checks.need(l.critic_loss == CriticLoss::Sac, "learner.critic_loss", "cql or cal-ql", why);
    checks.need(l.actor_loss == ActorLoss::Sac, "learner.actor_loss", "bc or awac", why);
    checks.need(
        l.start == Start::Bundle,
        "learner.start",
        "scratch",
        "must be \"bundle\" for a residual (policy.base): `fieldtune policy new --residual SCALE` makes a new one",
    );
    checks.need(
        c.replay.sampler != SamplerKind::Trajectory,
        "replay.sampler",
        "trajectory",
        "weighs by the density of recorded actions, which a residual (policy.base) has not; use \"balanced\" or \"uniform\"",
    );
}

fn pretrain(c: &Config, checks: &mut Checks) {
    let p = &c.pretrain;
    checks.need(p.updates > 0, "pretrain.updates", p.updates, "must be at least 1");
    let n = p.ensemble_size;
    checks.need((1..=64).contains(&n), "pretrain.ensemble_size", n, "must lie in 1 to 64");
    checks.need(widths(&p.hidden), "pretrain.hidden", show(&p.hidden), "1 to 8 widths of 1 to 8192");
    checks.need(p.cql_actions > 0, "pretrain.cql_actions", p.cql_actions, "must be at least 1");
    let (weight, temperature, gap) = (p.cql_weight, p.cql_temperature, p.cql_gap);
    checks.need(
        weight > 0.0 && weight.is_finite(),
        "pretrain.cql_weight",
        weight,
        "must be positive; for none use \"sac\"",
    );
    checks.need(
        temperature > 0.0 && temperature.is_finite(),
        "pretrain.cql_temperature",
        temperature,
        "must be positive",
    );
    checks.need(gap >= 0.0 && gap.is_finite(), "pretrain.cql_gap", gap, "must not be negative");
    let penalised = matches!(p.method, PretrainMethod::Cql | PretrainMethod::CalQl);
    checks.need(gap == 0.0 || penalised, "pretrain.cql_gap", gap, "pretrain.method has no penalty to hold at it");
    let n = p.backup_actions;
    checks.need((1..=1000).contains(&n), "pretrain.backup_actions", n, "must lie in 1 to 1000");
    checks.need(
        n <= 1 || !p.entropy_backup,
        "pretrain.entropy_backup",
        p.entropy_backup,
        "the best of several backup actions has no entropy; set pretrain.backup_actions = 1",
    );
    let alpha = p.initial_temperature;
    checks.need(alpha > 0.0 && alpha.is_finite(), "pretrain.initial_temperature", alpha, "must be positive");
    let cloning = p.behaviour_cloning_updates;
    checks.need(
        cloning == 0 || p.method != PretrainMethod::BehaviourCloning,
        "pretrain.behaviour_cloning_updates",
        cloning,
        "pretrain.method imitates in every update; set it to 0",
    );
    checks.need(
        p.cut_returns == CutReturns::Plain || p.method == PretrainMethod::CalQl,
        "pretrain.cut_returns",
        "steady",
        "only \"cal-ql\" uses the return of the data",
    );
    checks.need(
        p.evaluate_every == 0 || c.run.evaluate_episodes > 0,
        "pretrain.evaluate_every",
        p.evaluate_every,
        "needs run.evaluate_episodes of at least 1",
    );
    checks.need(p.batch_size > 0, "pretrain.batch_size", p.batch_size, "must be at least 1");
    for (key, rate) in [
        ("pretrain.actor_learning_rate", p.actor_learning_rate),
        ("pretrain.critic_learning_rate", p.critic_learning_rate),
    ] {
        checks.need(rate > 0.0 && rate < 1.0, key, rate, "must lie in (0, 1)");
    }
    checks.need(p.log_std.min < p.log_std.max, "pretrain.log_std", p.log_std.min, "min must be below max");
}

fn widths(hidden: &[usize]) -> bool {
    (1..=8).contains(&hidden.len()) && hidden.iter().all(|w| (1..=8192).contains(w))
}

fn show(hidden: &[usize]) -> String {
    format!("{hidden:?}")
}
