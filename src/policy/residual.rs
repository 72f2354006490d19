//! A residual on a frozen policy: what is executed is `clip(base(s) + scale tanh(z), -1, 1)`, `z ~ N(mean, std)`.
//!
//! The base is a bundle of either kind ([`AnyBundle`]) and acts by its mean; the residual is an ensemble whose bundle says
//! on which base it stands and how far it may leave it ([`Residual`]). A bundle never holds its base: `policy.base` names the
//! folder, and a base of another hash is refused. [`prepare`] puts both into one [`PolicyBackend`], so that one swap between
//! two ticks exchanges the residual; [`Frozen`] gives a learner the base's actions.
//!
//! Source: Ankile et al., Residual Off-Policy RL for Finetuning Behavior Cloning Policies, 2025.

use std::path::PathBuf;

use super::checks;
use super::manifest::Residual;
use super::prepare::Prepared;
use super::{AnyBundle, PolicyBackend, PolicyError, PolicyOutput};
use crate::config::PolicyConfig;
use crate::nn::weights::ActorWeights;
use crate::spaces::{FrameShape, Spaces};

/// Logarithm of a new residual's standard deviation: the first actions are the base's but for a little noise.
const FIRST_LOG_STD: f32 = -2.0;

/// Why a residual and its base do not go together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResidualError {
    /// A residual alone.
    #[error(
        "this policy is a residual on the base whose policy.onnx has SHA-256 {wanted}: name its bundle with policy.base"
    )]
    NoBase {
        /// Hash of the base.
        wanted: String,
    },
    /// On another base.
    #[error("policy.base: {path} has a policy.onnx with SHA-256 {found}, this residual was made for {wanted}")]
    OtherBase {
        /// Folder of the base.
        path: PathBuf,
        /// Hash of its policy.
        found: String,
        /// Hash that the residual asks for.
        wanted: String,
    },
    /// A residual on a residual.
    #[error("policy.base: {path} is a residual itself; a base acts by itself")]
    Nested {
        /// Folder of the base.
        path: PathBuf,
    },
    /// A base for something that needs none.
    #[error(
        "policy.base is set, but {path} is no residual: make one with `fieldtune policy new --residual SCALE`, or leave policy.base empty"
    )]
    NoResidual {
        /// Folder of the policy.
        path: PathBuf,
    },
    /// A residual where only a policy that acts by itself will do.
    #[error("{path} is a residual, whose actors do not act by themselves; pretraining needs an ensemble that does")]
    NotAlone {
        /// Folder of the policy.
        path: PathBuf,
    },
}

/// The base that `policy.base` names, checked against the robot.
///
/// # Errors
/// When there is none, it is damaged, a residual itself, or for another robot.
pub fn base(spaces: &Spaces, config: &PolicyConfig, wanted: Option<&Residual>) -> Result<AnyBundle, PolicyError> {
    let path = config.base.clone();
    if let (true, Some(residual)) = (path.as_os_str().is_empty(), wanted) {
        return Err(ResidualError::NoBase { wanted: residual.base_sha256.clone() }.into());
    }
    let bundle = AnyBundle::load(&path)?;
    if bundle.residual().is_some() {
        return Err(ResidualError::Nested { path }.into());
    }
    let found = bundle.policy_sha256();
    if let Some(Residual { base_sha256: wanted, .. }) = wanted.filter(|residual| residual.base_sha256 != found) {
        return Err(ResidualError::OtherBase { path, found: found.into(), wanted: wanted.clone() }.into());
    }
    checks::names(bundle.spaces(), spaces)?;
    Ok(bundle)
}

/// Puts a prepared residual on its base.
///
/// # Errors
/// As [`base`], and when a check of the base fails.
pub(super) fn prepare(
    mut residual: Prepared,
    stands_on: &Residual,
    spaces: &Spaces,
    config: &PolicyConfig,
) -> Result<Prepared, PolicyError> {
    let base = Frozen::new(stands_on, spaces, config)?;
    residual.report.base = Some(base.policy.engine());
    residual.backend = Box::new(ResidualPolicy { base, residual: residual.backend });
    Ok(residual)
}

/// Makes the actors of a new residual: the mean is 0 in every state, the standard deviation small.
pub fn start_at_base(actor: &mut ActorWeights) {
    let Some(last) = actor.stack.layers.last_mut() else { return };
    let means = last.outputs / 2;
    for row in last.weight.chunks_exact_mut(last.outputs.max(1)) {
        row[..means].fill(0.0);
    }
    for row in last.bias.chunks_exact_mut(last.outputs.max(1)) {
        row[..means].fill(0.0);
        row[means..].fill(FIRST_LOG_STD);
    }
}

/// A base that acts and does not learn.
pub struct Frozen {
    policy: Box<dyn PolicyBackend>,
    output: PolicyOutput,
    residual: Residual,
}

impl Frozen {
    /// The base that `policy.base` names, for `residual`.
    ///
    /// # Errors
    /// As [`base`], and when a check of the base fails.
    pub fn new(residual: &Residual, spaces: &Spaces, config: &PolicyConfig) -> Result<Self, PolicyError> {
        let policy = base(spaces, config, Some(residual))?.source().prepare(spaces, config)?.backend;
        Ok(Self::around(policy, residual.clone()))
    }

    /// Around a policy that is there; `residual` is taken at its word.
    pub fn around(policy: Box<dyn PolicyBackend>, residual: Residual) -> Self {
        Self { policy, output: PolicyOutput::default(), residual }
    }

    /// On what a residual stands here.
    pub fn residual(&self) -> &Residual {
        &self.residual
    }

    /// Actions for observations `(B, O)`: `(B, A)`, row-major. Of a base without eyes.
    ///
    /// # Errors
    /// As [`PolicyBackend::infer`].
    pub fn actions(&mut self, observations: &[f32]) -> Result<Vec<f32>, PolicyError> {
        let mut actions = Vec::new();
        for row in observations.chunks_exact(self.policy.observation_dim().max(1)) {
            self.policy.infer(row, &[], &mut self.output)?;
            actions.extend((0..self.output.action_dim).map(|d| self.output.action(d, 0.0)));
        }
        Ok(actions)
    }
}

/// Base and residual as one policy.
struct ResidualPolicy {
    base: Frozen,
    residual: Box<dyn PolicyBackend>,
}

impl PolicyBackend for ResidualPolicy {
    fn infer(&mut self, observation: &[f32], image: &[u8], out: &mut PolicyOutput) -> Result<(), PolicyError> {
        let Frozen { policy, output, residual } = &mut self.base;
        policy.infer(observation, image, output)?;
        self.residual.infer(observation, image, out)?;
        out.scale = residual.scale;
        for (d, base) in out.base[..out.action_dim].iter_mut().enumerate() {
            *base = output.action(d, 0.0);
        }
        Ok(())
    }

    fn frame(&self) -> Option<FrameShape> {
        self.base.policy.frame().or(self.residual.frame())
    }

    fn engine(&self) -> &'static str {
        self.residual.engine()
    }

    fn observation_dim(&self) -> usize {
        self.residual.observation_dim()
    }

    fn action_dim(&self) -> usize {
        self.residual.action_dim()
    }
}
