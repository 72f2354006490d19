//! Typed configuration (layer 1).
//!
//! A configuration file holds only what differs from `config/default.toml`, which explains every key. Unknown
//! keys, wrong types and values out of range are refused, all at once, each with file, line, key and reason.
//! Nothing is read from the environment.

mod camera;
mod check;
mod choices;
mod load;
mod method;
mod place;

pub use camera::{CameraSource, Cameras, CaptureStamps, Filter, ImageStream};
pub use choices::{
    Bound, Cadence, ClockKind, CqlEntries, Crops, CutReturns, DeviceKind, Existing, Exploration, LinkKind, Overrun,
    PersonLost, PolicyEngine, PretrainMethod, Retention, RewardSource, SamplerKind, SwapAt, TrunkKind,
};
pub use load::{ConfigError, Problem, load, parse};
pub use method::{
    ActorBatch, ActorLoss, ActorOperator, CriticLoss, LayerNorm, Order, OutputActivation, PRESETS, Start, TargetKind,
    TemperatureForm, TemperatureStates,
};
pub use place::ListenAt;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::nn::weights::LogStdBounds;
use crate::spaces::Spaces;

/// The text of `config/default.toml`.
pub const DEFAULT_TOML: &str = include_str!("../../config/default.toml");

/// Episodes whose returns a running process keeps on each side of a swap.
pub const MOST_TRIAL_EPISODES: u32 = 32;

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty = $default:expr,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        })*
    };
}

sections! {
    /// The whole configuration.
    Config {
        /// The run as a whole.
        run: RunConfig = RunConfig::default(),
        /// The robot and the way to it.
        robot: RobotConfig = RobotConfig::default(),
        /// A simulated robot to start, if any.
        simulator: SimulatorConfig = SimulatorConfig::default(),
        /// The cameras.
        camera: CameraConfig = CameraConfig::default(),
        /// Limits that hold whatever the policy says.
        safety: SafetyConfig = SafetyConfig::default(),
        /// Episodes.
        episode: EpisodeConfig = EpisodeConfig::default(),
        /// A person who may take over.
        intervention: InterventionConfig = InterventionConfig::default(),
        /// Scheduling of the control thread.
        realtime: RealtimeConfig = RealtimeConfig::default(),
        /// The policy and its hand-over.
        policy: PolicyConfig = PolicyConfig::default(),
        /// Policies from outside.
        swap: SwapConfig = SwapConfig::default(),
        /// The replay buffer and its sampler.
        replay: ReplayConfig = ReplayConfig::default(),
        /// The learner.
        learner: LearnerConfig = LearnerConfig::default(),
        /// What heat takes of the learner's time.
        thermal: ThermalConfig = ThermalConfig::default(),
        /// A learner for several robots.
        fleet: FleetConfig = FleetConfig::default(),
        /// Offline training of a first ensemble.
        pretrain: PretrainConfig = PretrainConfig::default(),
    }

    /// `[run]`.
    RunConfig {
        /// Seed of every random stream.
        seed: u64 = 0,
        /// Control steps of the run, those before a restart included.
        steps: u64 = 2000,
        /// Which time the run lives in.
        clock: ClockKind = ClockKind::Realtime,
        /// Folder for the replay, checkpoints, socket and report; relative to the working directory.
        directory: PathBuf = PathBuf::from("runs/default"),
        /// What to do when the folder already holds a run.
        existing: Existing = Existing::Resume,
        /// Deterministic episodes before and after; 0 skips them.
        evaluate_episodes: u32 = 5,
        /// A preset of the learning method: one of [`PRESETS`] or a path; empty for none.
        method: String = String::new(),
    }

    /// `[robot]`.
    RobotConfig {
        /// Name for people.
        name: String = String::from("pendulum"),
        /// Control steps per second.
        control_hz: f64 = 20.0,
        /// Kind of link.
        link: LinkKind = LinkKind::Unix,
        /// Address of the robot on the link; empty with a simulator the run starts by itself.
        address: String = String::new(),
        /// Line rate of a serial link.
        baud: u32 = 3_000_000,
        /// How long a command stays valid on the robot without a fresh one.
        command_valid_ms: u8 = 150,
        /// Longest wait for an answer when connecting, arming or resetting.
        timeout_ms: u32 = 5000,
        /// Names of observation and action entries, in order.
        spaces: Spaces = Spaces {
            observation: ["cos_theta", "sin_theta", "theta_rad_s"].map(String::from).to_vec(),
            action: vec![String::from("torque")],
        },
    }

    /// `[simulator]`.
    SimulatorConfig {
        /// `pendulum`, `halfcheetah`, `hopper`, `walker2d`, `gantry-...`; empty for a real robot.
        task: String = String::from("pendulum"),
        /// Folder with the MuJoCo library and models (`tools/setup-native`).
        native: PathBuf = PathBuf::from(".native"),
        /// Noise levels of a script of the robot's own, which it follows instead of its commands; empty for none.
        script: Vec<f64> = Vec::new(),
    }

    /// `[camera]`.
    CameraConfig {
        /// Where images come from, one source per camera.
        source: Cameras = Cameras::default(),
        /// What comes over a stream.
        format: ImageStream = ImageStream::Headers,
        /// Width and height of the source's images; 0 takes those of the first image.
        source_size: [u16; 2] = [0, 0],
        /// Part of an image that is used: x, y, width, height; all 0 for the whole.
        crop: [u16; 4] = [0; 4],
        /// Pixels in a row of a frame, as the policy sees it.
        width: u16 = 48,
        /// Its rows.
        height: u16 = 48,
        /// How an image becomes a frame.
        filter: Filter = Filter::Area,
        /// Images per second.
        rate_hz: f64 = 20.0,
        /// Whose word counts for when an image was taken.
        stamps: CaptureStamps = CaptureStamps::Source,
        /// Least age at which a frame is stale.
        stale_ms: u32 = 0,
        /// Images in a row without a change that raise the alarm; 0 for none.
        frozen_images: u32 = 40,
        /// Largest difference of the stamps of several cameras in one frame.
        align_ms: u32 = 20,
        /// fx, fy, cx, cy of the source's images in pixels; all 0 when not known. Only kept with the data.
        intrinsics: [f64; 4] = [0.0; 4],
    }

    /// `[safety]`.
    SafetyConfig {
        /// Largest magnitude of any action entry.
        action_limit: f32 = 1.0,
        /// Largest change of an action entry per step; 2 does not limit.
        slew_per_step: f32 = 2.0,
        /// Steps without a fresh observation before the action is held at zero.
        stale_steps: u32 = 2,
        /// Steps without a fresh observation before the robot is stopped.
        lost_steps: u32 = 10,
    }

    /// `[episode]`.
    EpisodeConfig {
        /// Time limit; the step that reaches it is truncated.
        max_steps: u32 = 200,
        /// Where rewards come from.
        reward: RewardSource = RewardSource::Robot,
        /// Reward of every step when they come from the outcome.
        step_reward: f32 = 0.0,
        /// The episode is a success when all of these hold.
        success: Vec<Bound> = Vec::new(),
        /// Added to the reward of the step that succeeds.
        success_reward: f32 = 1.0,
        /// The episode is a failure when any of these holds.
        failure: Vec<Bound> = Vec::new(),
        /// Added to the reward of the step that fails.
        failure_reward: f32 = 0.0,
        /// Steps in a row for which a condition has to hold.
        hold_steps: u32 = 1,
        /// An ONNX model that scores observations; empty for none.
        classifier: PathBuf = PathBuf::new(),
        /// Its output; empty for the only one.
        classifier_output: String = String::new(),
        /// Score from which an observation counts as a success.
        classifier_threshold: f32 = 0.5,
    }

    /// `[intervention]`.
    InterventionConfig {
        /// Where a person's commands come in.
        listen: ListenAt = ListenAt::Nowhere,
        /// A command that is older than this counts as silence.
        max_age_ms: u32 = 250,
        /// Time over which control passes over, in either direction.
        blend_ms: u32 = 300,
        /// What happens when the person in control is silent.
        lost: PersonLost = PersonLost::Hold,
    }

    /// `[realtime]`.
    RealtimeConfig {
        /// SCHED_FIFO priority of the control thread; 0 asks for none.
        priority: u32 = 80,
        /// Lock the control thread's memory.
        lock_memory: bool = true,
        /// Processor of the control thread; -1 lets the system choose.
        cpu: i32 = -1,
        /// How long an idle processor may take to wake up, microseconds; -1 leaves it to the system.
        cpu_dma_latency_us: i32 = 0,
        /// What happens when a tick ends after the next deadline.
        overrun: Overrun = Overrun::Skip,
        /// Whether a refused setting is an error instead of a warning.
        required: bool = false,
    }

    /// `[policy]`.
    PolicyConfig {
        /// The bundle to start from.
        bundle: PathBuf = PathBuf::from("models/pendulum-cql"),
        /// The bundle of the frozen policy below, if the one to start from is a residual.
        base: PathBuf = PathBuf::new(),
        /// Engine.
        engine: PolicyEngine = PolicyEngine::Auto,
        /// Path of `libonnxruntime.so`; empty for none.
        onnxruntime: PathBuf = PathBuf::new(),
        /// How actions are taken while learning.
        exploration: Exploration = Exploration::Stochastic,
        /// Standard deviation of the noise in place of the ensemble's own; 0 for the ensemble's own.
        action_noise: f32 = 0.0,
        /// Updates between two published policies.
        publish_every: u64 = 100,
    }

    /// `[swap]`.
    SwapConfig {
        /// When a policy from outside is applied.
        at: SwapAt = SwapAt::Tick,
        /// Newest observations it is run on beside the policy in use.
        shadow_steps: u32 = 200,
        /// Largest mean difference of an action entry there.
        shadow_gate: f64 = 2.0,
        /// Whole episodes on trial.
        trial_episodes: u32 = 3,
        /// Share of the return before by which the return on trial may be less; 0 does not look.
        return_drop: f64 = 0.5,
        /// Share of limited steps that is no collapse; 1 does not look.
        limited_share: f64 = 0.9,
    }

    /// `[replay]`.
    ReplayConfig {
        /// Records of the online buffer.
        capacity: u64 = 250_000,
        /// Most megabytes of camera frames that each buffer keeps in memory.
        resident_mb: u64 = 4096,
        /// What becomes of old steps when it is full.
        retention: Retention = Retention::Ring,
        /// Offline data: a replay folder or an .npz data set; empty for none.
        offline: PathBuf = PathBuf::from("models/pendulum-offline.npz"),
        /// Sampler.
        sampler: SamplerKind = SamplerKind::Balanced,
        /// Share of offline rows in every minibatch of the symmetric sampler.
        offline_share: f64 = 0.5,
        /// Share of rows in every minibatch from steps in which a person chose the action.
        intervention_share: f64 = 0.0,
        /// rho0: share of the first 1000 online samples when they arrive.
        initial_online_share: f64 = 0.75,
        /// T in `w^(1/T)`.
        priority_temperature: f64 = 5.0,
        /// Priorities are clamped to this range.
        priority_min: f32 = 1e-3,
        /// Upper end.
        priority_max: f32 = 1e3,
        /// lambda of the trajectory sampler.
        trajectory_temperature: f64 = 5.0,
        /// Updates between two sweeps of the trajectory sampler.
        trajectory_refresh: u64 = 1000,
        /// Seconds between two syncs to disk.
        sync_every_s: f64 = 5.0,
    }

    /// `[learner]`.
    LearnerConfig {
        /// Whether to learn at all.
        enabled: bool = true,
        /// Whether the learner is a `fieldtune learner` elsewhere.
        remote: bool = false,
        /// Device.
        device: DeviceKind = DeviceKind::Cpu,
        /// Threads of the learner's kernels.
        threads: usize = 1,
        /// Share of the time in which the learner of a real-time run may compute.
        max_utilisation: f64 = 1.0,
        /// Where the networks come from.
        start: Start = Start::Bundle,
        /// Members to use, the first of the bundle's; 0 for all.
        members: usize = 0,
        /// Actors to use, the first of the bundle's; 0 for as many as members, 1 for one that all critics judge.
        actors: usize = 0,
        /// Layer norm of all networks.
        layer_norm: LayerNorm = LayerNorm::AsGiven,
        /// Whether all critics share their output layer.
        shared_head: bool = false,
        /// Whether target networks start as the bundle's, where it brings them.
        carry_targets: bool = true,
        /// Whether the entropy temperature starts as the bundle's, where it brings one.
        carry_temperature: bool = true,
        /// Checkpoint folder of the pretraining whose Adam moments go on; empty for fresh optimisers.
        carry_optimiser: PathBuf = PathBuf::new(),
        /// Who learns to see, where there are images.
        trunk: TrunkKind = TrunkKind::Shared,
        /// Channels of the convolutions of a new encoder.
        trunk_channels: Vec<usize> = vec![16, 16, 16],
        /// Features that a new encoder makes of an image.
        trunk_features: usize = 64,
        /// Whether the networks of a new ensemble see the observation beside the features.
        proprioception: bool = true,
        /// Most pixels by which an image is moved in a loss; 0 leaves it.
        shift_pixels: u32 = 4,
        /// How often an image is moved anew.
        crops: Crops = Crops::Once,
        /// Rows of a minibatch.
        batch_size: usize = 256,
        /// Updates per control step.
        utd_ratio: f64 = 1.0,
        /// Critic steps in an update, each on a minibatch of its own; the actor steps once.
        critic_steps: usize = 1,
        /// Rows of the actor's step.
        actor_batch: ActorBatch = ActorBatch::All,
        /// Which critics the actor's loss sees.
        order: Order = Order::Joint,
        /// When updates happen.
        cadence: Cadence = Cadence::Stream,
        /// Length of a burst, and of the first phase that `first_burst_multiplier` multiplies.
        burst_steps: u64 = 1000,
        /// The first burst has this many times the updates.
        first_burst_multiplier: f64 = 5.0,
        /// Online steps before the first update.
        warmup_steps: u64 = 256,
        /// gamma.
        discount: f64 = 0.99,
        /// tau of the target networks.
        target_rate: f64 = 0.005,
        /// Which target critics bootstrap a member.
        target_operator: TargetKind = TargetKind::OwnTwinMin,
        /// Target critics that REDQ draws.
        redq_subset: usize = 2,
        /// Whether it may draw one twice.
        redq_replacement: bool = true,
        /// Loss of the critics.
        critic_loss: CriticLoss = CriticLoss::Sac,
        /// Weight of the CQL penalty.
        cql_weight: f64 = 5.0,
        /// Sampled actions of each kind in the CQL penalty.
        cql_actions: usize = 4,
        /// Entries of the CQL penalty.
        cql_entries: CqlEntries = CqlEntries::ImportanceSampled,
        /// T of the penalty's log-sum-exp.
        cql_temperature: f64 = 1.0,
        /// Lagrange variant: the penalty that its multiplier holds; 0 for a fixed weight.
        cql_gap: f64 = 0.0,
        /// Loss of the actors.
        actor_loss: ActorLoss = ActorLoss::Sac,
        /// How the critics judge an action of the actor.
        actor_operator: ActorOperator = ActorOperator::MeanOfTwinMin,
        /// beta of AWAC.
        awac_beta: f64 = 2.0,
        /// Cost of leaving the anchor, a slow copy of the actors; 0 for none.
        anchor_weight: f64 = 0.0,
        /// How fast the anchor follows the actors.
        anchor_rate: f64 = 0.005,
        /// Updates over which its weight falls to 0; 0 for never.
        anchor_updates: u64 = 0,
        /// Adam step size of the actors.
        actor_learning_rate: f64 = 3e-4,
        /// Adam step size of the critics.
        critic_learning_rate: f64 = 3e-4,
        /// Adam step size of the entropy temperature.
        temperature_learning_rate: f64 = 3e-4,
        /// Adam step size of the density-ratio network.
        density_learning_rate: f64 = 3e-4,
        /// Largest norm of a network's gradient; 0 for none.
        gradient_clip: f64 = 0.0,
        /// Whether networks whose turn it is not are stepped with a gradient of 0.
        zero_gradient_adam: bool = false,
        /// Hidden widths of the density-ratio network.
        density_hidden: Vec<usize> = vec![256, 256],
        /// What makes its output positive.
        density_output: OutputActivation = OutputActivation::Relu,
        /// Whether the backup holds the entropy term.
        entropy_backup: bool = true,
        /// Entropy temperature at the start.
        initial_temperature: f64 = 1.0,
        /// How the temperature is made of its parameter.
        temperature_form: TemperatureForm = TemperatureForm::Exp,
        /// The states whose entropy the temperature regulates.
        temperature_states: TemperatureStates = TemperatureStates::Current,
        /// Entropy that the temperature regulates to, per action entry.
        target_entropy: f64 = -1.0,
        /// Clamp of the log standard deviation while fine-tuning.
        log_std: LogStdBounds = LogStdBounds::default(),
        /// Updates between two checkpoints; 0 for none but the last.
        checkpoint_every: u64 = 5000,
        /// Updates between two diagnoses; 0 for the first and the last only.
        diagnose_every: u64 = 1000,
    }

    /// `[thermal]`.
    ThermalConfig {
        /// Folder with the system's temperature sensors; empty: none is read.
        zones: PathBuf = PathBuf::from("/sys/class/thermal"),
        /// Names of sensors that do not count.
        ignore: Vec<String> = vec![String::from("PMIC-Die")],
        /// Seconds between two readings.
        read_every_s: f64 = 1.0,
        /// Degrees Celsius of the hottest sensor from which the learner is slowed.
        slow_c: f64 = 90.0,
        /// Its share of the time then.
        slow_utilisation: f64 = 0.25,
        /// Degrees Celsius from which it pauses.
        pause_c: f64 = 96.0,
        /// Degrees by which it has to be cooler again.
        hysteresis_c: f64 = 5.0,
    }

    /// `[fleet]`.
    FleetConfig {
        /// Name of the fleet.
        name: String = String::from("fleet"),
        /// Name of the robot in it; empty for `robot.name`.
        robot: String = String::new(),
        /// Where the learner, or a router on the way to it, is.
        connect: String = String::from("tcp/127.0.0.1:7447"),
        /// Where the learner listens.
        listen: String = String::from("tcp/127.0.0.1:7447"),
        /// A configuration file of zenoh in the place of the two; empty for none.
        zenoh: PathBuf = PathBuf::new(),
        /// Time between two messages of a robot.
        send_every_ms: u32 = 500,
        /// Most records in one.
        batch_steps: usize = 512,
        /// How long a robot waits for an answer.
        timeout_ms: u32 = 2000,
    }

    /// `[pretrain]`.
    PretrainConfig {
        /// Method.
        method: PretrainMethod = PretrainMethod::Cql,
        /// Gradient updates.
        updates: u64 = 4000,
        /// Ensemble size N.
        ensemble_size: usize = 5,
        /// Hidden widths of actors and critics.
        hidden: Vec<usize> = vec![256, 256],
        /// Layer norm in actors and critics.
        layer_norm: bool = false,
        /// Entries of the CQL penalty.
        cql_entries: CqlEntries = CqlEntries::ImportanceSampled,
        /// Sampled actions of each kind in the CQL penalty.
        cql_actions: usize = 4,
        /// Weight of the CQL penalty.
        cql_weight: f64 = 5.0,
        /// T of the penalty's log-sum-exp.
        cql_temperature: f64 = 1.0,
        /// Lagrange variant: the penalty that its multiplier holds; 0 for a fixed weight.
        cql_gap: f64 = 0.0,
        /// Actions at the next state of which the best is backed up.
        backup_actions: usize = 1,
        /// Whether the backup holds the entropy term.
        entropy_backup: bool = false,
        /// Entropy temperature at the start.
        initial_temperature: f64 = 1.0,
        /// Return of cut episodes, for Cal-QL.
        cut_returns: CutReturns = CutReturns::Plain,
        /// First updates in which the actor imitates the data.
        behaviour_cloning_updates: u64 = 0,
        /// Rows of a minibatch.
        batch_size: usize = 128,
        /// Adam step size of the actors.
        actor_learning_rate: f64 = 1e-4,
        /// Adam step size of the critics.
        critic_learning_rate: f64 = 3e-4,
        /// Clamp of the log standard deviation.
        log_std: LogStdBounds = LogStdBounds { min: -5.0, max: 2.0 },
        /// Updates between two checkpoints; 0 for none but the last.
        checkpoint_every: u64 = 5000,
        /// Updates between two evaluations; 0 for none.
        evaluate_every: u64 = 0,
    }
}
