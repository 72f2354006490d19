//! What keys choose between.

use serde::{Deserialize, Serialize};

use super::EpisodeConfig;
use crate::spaces::Outcome;

/// Which time a run lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockKind {
    /// The machine's clock: threads, deadlines, a robot that does not wait.
    Realtime,
    /// Simulated time: the robot waits for every command, the learner for every step; repeatable to the byte.
    Lockstep,
}

/// What a run does with a folder that already holds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Existing {
    /// Goes on: replay reopened, learner from its checkpoint, the remaining steps.
    Resume,
    /// Moves the old folder aside (`NAME.1`, `NAME.2`, ...) and starts anew.
    Fresh,
    /// An error.
    Refuse,
}

/// How frames reach the robot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkKind {
    /// Unix datagram socket; the address is the path of the robot's socket.
    Unix,
    /// UDP; the address is `host:port` of the robot.
    Udp,
    /// Serial line or pty; the address is the device path.
    Serial,
}

/// Which engine runs the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyEngine {
    /// ONNX Runtime when `policy.onnxruntime` names a library, else the built-in pass.
    Auto,
    /// ONNX Runtime or an error.
    Onnxruntime,
    /// The built-in forward pass.
    Builtin,
}

/// How actions are taken from the policy while learning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exploration {
    /// Sampled from the ensemble's Gaussian.
    Stochastic,
    /// `tanh(mean)`.
    Deterministic,
}

/// When a policy from outside is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwapAt {
    /// Between two ticks.
    Tick,
    /// Between two episodes.
    Episode,
}

/// What the learner draws its minibatches from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// Off2OnRL: by priority from the density ratio.
    Balanced,
    /// Uniform over offline and online.
    Uniform,
    /// Uniform over online only.
    Online,
    /// A fixed share of every minibatch uniform over offline, the rest uniform over online (RLPD).
    Symmetric,
    /// ARB: by priority from how likely the policy finds the actions of the trajectory.
    Trajectory,
}

/// What becomes of old steps when the online buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retention {
    /// New steps replace the oldest.
    Ring,
    /// Everything is kept; steps that no longer fit are counted and not recorded.
    KeepAll,
}

/// When updates happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cadence {
    /// Updates follow every step.
    Stream,
    /// Updates follow every `learner.burst_steps` steps, as in the published code.
    Burst,
}

/// What the control loop does when it is late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overrun {
    /// Leaves out whole periods and counts them; the phase stays.
    #[default]
    Skip,
    /// Runs the next tick at once and keeps the period from there; for robots that set the pace.
    AtOnce,
}

/// What happens when the commands of a person in control stop coming.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PersonLost {
    /// The action is zero until the person commands again or lets go.
    #[default]
    Hold,
    /// Control passes back to the policy, as when the person lets go.
    Policy,
    /// The robot is stopped, the run ends.
    Stop,
}

/// Where the reward of a step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewardSource {
    /// The robot computes it.
    Robot,
    /// `episode.step_reward`, and the outcome's in the last step.
    Outcome,
}

/// A range of an entry of the observation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// Its name in `robot.spaces`.
    pub entry: String,
    /// Lower end, inclusive.
    pub min: f32,
    /// Upper end, inclusive.
    pub max: f32,
}

/// Device of the learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// Whichever makes an update in less time at the start; the processor where there is no GPU.
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU; needs the `cuda` feature.
    Cuda,
}

/// Who learns to see, where there are images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrunkKind {
    /// One encoder for all networks, trained by the critics' loss; target critics look through its slow copy.
    Shared,
    /// An encoder for each network and member, trained by its own loss (COG).
    Separate,
    /// One encoder for all networks, as it came; features of a stored image are computed once.
    Frozen,
    /// Nobody: images are left alone.
    None,
}

/// How often an image of a minibatch is cropped anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crops {
    /// Once an update: all networks see the same.
    Once,
    /// For every pass of a network (COG).
    EachPass,
}

/// What pretraining makes out of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PretrainMethod {
    /// Conservative Q-learning.
    Cql,
    /// CQL whose values at policy actions are bounded below by the return of the data.
    CalQl,
    /// SAC on the data, without a penalty.
    Sac,
    /// Actors imitate the data; critics judge them.
    BehaviourCloning,
}

/// Entries of CQL's log-sum-exp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CqlEntries {
    /// CQL(H): values less the log-density of their proposal.
    ImportanceSampled,
    /// CQL(rho): plain values and the value of the data.
    Rho,
}

/// What comes after the last reward of an episode that was cut, in the return of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutReturns {
    /// Nothing.
    Plain,
    /// The mean reward of the episode, for ever.
    Steady,
}

impl EpisodeConfig {
    /// What an outcome adds to the reward of the step that ends an episode.
    pub fn worth(&self, outcome: Outcome) -> f32 {
        match outcome {
            Outcome::Success => self.success_reward,
            Outcome::Failure => self.failure_reward,
        }
    }
}
