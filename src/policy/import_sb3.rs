//! SAC of Stable-Baselines3: the zip of `model.save`, with the settings as JSON and the networks in `policy.pth`.
//!
//! Actor `actor.latent_pi.{0,2,..}`, heads `mu` and `log_std` clamped to -20..2; critics `critic.qf{0,1}.{0,2,..}`, which
//! see actions scaled to [-1, 1]. Values that the JSON keeps as pickles are not looked into. Whether a `VecNormalize`
//! stood before the network is in another file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::import::{ImportError, read as read_file, read_torch};
use super::import_kind::Imported;
use super::import_layers::Named;
use super::stored_zip;
use crate::nn::weights::{ActorWeights, EnsembleWeights, LogStdBounds};

/// Reads one model; state scaling is not folded in yet.
pub(super) fn read(path: &Path) -> Result<Imported, ImportError> {
    let bytes = read_file(path)?;
    let entries = stored_zip::entries(&bytes)
        .map_err(|source| ImportError::File { path: path.to_path_buf(), source: source.into() })?;
    let settings = |reason: String| ImportError::Settings { path: path.to_path_buf(), reason };
    let entry = |name: &str| entries.get(name).copied().ok_or_else(|| settings(format!("entry `{name}` is missing")));
    let data: Value = serde_json::from_slice(entry("data")?).map_err(|e| settings(e.to_string()))?;
    check(path, &data)?;

    let mut file = Named { path, tensors: read_torch(path, entry("policy.pth")?)? };
    let stack = file.network(|index| format!("actor.latent_pi.{}", 2 * index), &["actor.mu", "actor.log_std"])?;
    let mut critic = |name: &str| file.network(|index| format!("{name}.{}", 2 * index), &[]);
    let (critic1, critic2) = (critic("critic.qf0")?, critic("critic.qf1")?);
    let targets = Some((critic("critic_target.qf0")?, critic("critic_target.qf1")?));
    file.finish(&[])?;

    let mut variables = Named { path, tensors: read_torch(path, entry("pytorch_variables.pth")?)? };
    let log_alpha = if variables.has("log_ent_coef") {
        Some(variables.number("log_ent_coef")?)
    } else if variables.has("ent_coef_tensor") {
        Some(variables.number("ent_coef_tensor")?.ln())
    } else {
        None
    };
    let mut facts = BTreeMap::new();
    for (fact, space, key) in [("action low", "action_space", "low"), ("action high", "action_space", "high")] {
        if let Some(text) = data[space][key].as_str() {
            facts.insert(format!("{fact} of the environment, here -1 and 1"), text.chars().take(200).collect());
        }
    }
    let actor = ActorWeights { stack, log_std: LogStdBounds::default(), eyes: None };
    Ok(Imported {
        weights: EnsembleWeights { actor, critic1, critic2, targets, log_alpha, encoder: None },
        algorithm: format!("SAC, {} steps, by Stable-Baselines3", data["num_timesteps"]),
        discount: data["gamma"].as_f64(),
        facts,
    })
}

/// Networks that are not those of this reader.
fn check(path: &Path, data: &Value) -> Result<(), ImportError> {
    let unsupported = |what, found: &Value, reason| {
        let found = found.as_str().map_or_else(|| found.to_string(), String::from).chars().take(80).collect();
        Err(ImportError::Unsupported { path: path.to_path_buf(), what, found, reason })
    };
    let policy = &data["policy_class"]["__module__"];
    if policy.as_str().is_none_or(|module| !module.ends_with(".sac.policies")) {
        return unsupported("its policy", policy, "only SAC has an actor and critics that learning goes on with here");
    }
    let activation = &data["policy_kwargs"]["activation_fn"];
    if !activation.is_null() && activation.as_str().is_none_or(|a| !a.ends_with("activation.ReLU'>")) {
        return unsupported("its activation", activation, "networks here have ReLU");
    }
    if data["use_sde"] != Value::Bool(false) {
        return unsupported("use_sde", &data["use_sde"], "needed is false");
    }
    Ok(())
}
