//! SAC, CQL and Cal-QL of d3rlpy: `.d3` of `save` (a pickle of settings as JSON and the networks as a torch file), or
//! `.pt` of `save_model` with the `params.json` that d3rlpy writes beside it.
//!
//! Actor `policy/_encoder._layers.{0,2,..}`, heads `_mu` and `_logstd` clamped to -20..2; critics
//! `q_funcs/{0,1}._encoder._layers.{0,2,..}` and `_fc`. The observation scaler becomes part of the first layers. An action
//! scaler maps the environment's range to the [-1, 1] that actor and critics see.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::import::{ImportError, read as read_file, read_torch};
use super::import_kind::Imported;
use super::import_layers::{Named, StateScaling};
use super::pickle::{self, Pickle};
use super::torch_legacy::TorchError;
use crate::nn::weights::{ActorWeights, EnsembleWeights, LogStdBounds};

/// Algorithms with a tanh-Gaussian actor, its log standard deviation clamped to -20..2, and twin critics.
const ALGORITHMS: [&str; 3] = ["sac", "cql", "cal_ql"];

/// Reads one checkpoint, and how it scaled observations. `params` is the text of `params.json`.
pub(super) fn read(path: &Path, params: Option<&[u8]>) -> Result<(Imported, Option<StateScaling>), ImportError> {
    let bytes = read_file(path)?;
    let reader = Reader { path };
    let said = |reason| ImportError::Said { path: path.to_path_buf(), what: "--params", reason };
    let (settings, tensors) = if bytes.starts_with(b"PK") {
        let params = params.ok_or_else(|| ImportError::Unsaid {
            path: path.to_path_buf(),
            what: "its settings (scalers, activation, gamma)",
            flag: "--params params.json as d3rlpy wrote it beside the file, or import the .d3",
        })?;
        (reader.json(params)?, read_torch(path, &bytes)?)
    } else if params.is_some() {
        return Err(said("a .d3 file holds its settings"));
    } else {
        let (settings, torch) = reader.unwrap(&bytes)?;
        (reader.json(settings.as_bytes())?, read_torch(path, &torch)?)
    };
    let config = &settings["config"];
    reader.check(config)?;
    let scaling = reader.scaling(&config["params"]["observation_scaler"])?;
    let mut imported = reader.networks(tensors)?;
    let kind = config["type"].as_str().unwrap_or_default();
    imported.algorithm = format!("{} by d3rlpy", kind.to_uppercase());
    imported.discount = config["params"]["gamma"].as_f64();
    let mut facts = BTreeMap::new();
    for scaler in ["observation_scaler", "action_scaler", "reward_scaler"] {
        let value = &config["params"][scaler];
        if value["type"].as_str().is_some_and(|kind| kind != "none") {
            facts.insert(format!("d3rlpy {scaler}"), value.to_string().chars().take(2000).collect());
        }
    }
    imported.facts = facts;
    Ok((imported, scaling))
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn settings(&self, reason: impl Into<String>) -> ImportError {
        ImportError::Settings { path: self.path.to_path_buf(), reason: reason.into() }
    }

    fn json(&self, bytes: &[u8]) -> Result<Value, ImportError> {
        serde_json::from_slice(bytes).map_err(|e| self.settings(e.to_string()))
    }

    /// Settings and torch file out of a `.d3`.
    fn unwrap(&self, bytes: &[u8]) -> Result<(String, Vec<u8>), ImportError> {
        let file = |source: TorchError| ImportError::File { path: self.path.to_path_buf(), source };
        let object = Pickle::read(&mut &*bytes).map_err(|e| file(e.into()))?;
        let item = |key| object.item(object.root(), key);
        match (item("config"), item("torch")) {
            (Some(pickle::Value::Text(config)), Some(pickle::Value::Bytes(torch))) => {
                Ok((config.clone(), torch.clone()))
            }
            _ => Err(self.settings("no dictionary of `config` and `torch`")),
        }
    }

    /// Refuses networks that are not those of this reader.
    fn check(&self, config: &Value) -> Result<(), ImportError> {
        let unsupported = |what, found: &Value, reason| {
            let found = found.to_string().chars().take(80).collect();
            Err(ImportError::Unsupported { path: self.path.to_path_buf(), what, found, reason })
        };
        if config["type"].as_str().is_none_or(|kind| !ALGORITHMS.contains(&kind)) {
            return unsupported("its algorithm", &config["type"], "imported are sac, cql and cal_ql");
        }
        let params = &config["params"];
        if params["n_critics"] != 2 {
            return unsupported("n_critics", &params["n_critics"], "needed are 2");
        }
        if params["q_func_factory"]["type"] != "mean" {
            return unsupported("its Q function", &params["q_func_factory"]["type"], "needed is `mean`");
        }
        for encoder in ["actor_encoder_factory", "critic_encoder_factory"] {
            let factory = &params[encoder];
            let kind = factory["type"].as_str().unwrap_or_default();
            let set = |key: &str| !matches!(factory["params"][key], Value::Null | Value::Bool(false));
            let plain = ["use_batch_norm", "use_layer_norm", "exclude_last_activation", "last_activation"];
            let activation = &factory["params"]["activation"];
            let relu = activation.is_null() && kind == "default" || activation == "relu";
            if !["default", "vector"].contains(&kind) || !relu || plain.iter().any(|key| set(key)) {
                return unsupported("an encoder", factory, "networks here are dense layers with ReLU");
            }
        }
        Ok(())
    }

    /// The observation scaler as a shift and a scale.
    fn scaling(&self, scaler: &Value) -> Result<Option<StateScaling>, ImportError> {
        let params = &scaler["params"];
        let list = |key: &str| -> Result<Vec<f64>, ImportError> {
            let numbers = params[key].as_array().map(|list| list.iter().map(Value::as_f64).collect::<Option<_>>());
            numbers.flatten().ok_or_else(|| self.settings(format!("observation scaler without a list `{key}`")))
        };
        match scaler["type"].as_str() {
            Some("none") => Ok(None),
            Some("standard") => {
                let eps = params["eps"].as_f64().ok_or_else(|| self.settings("observation scaler without `eps`"))?;
                let scale = list("std")?.into_iter().map(|std| std + eps).collect();
                Ok(Some(StateScaling { shift: list("mean")?, scale }))
            }
            // (x - min) / (max - min) * 2 - 1
            Some("min_max") => {
                let (low, high) = (list("minimum")?, list("maximum")?);
                let pairs = || low.iter().zip(&high);
                let shift = pairs().map(|(low, high)| f64::midpoint(*low, *high)).collect();
                Ok(Some(StateScaling { shift, scale: pairs().map(|(low, high)| (high - low) / 2.0).collect() }))
            }
            _ => Err(ImportError::Unsupported {
                path: self.path.to_path_buf(),
                what: "its observation scaler",
                found: scaler["type"].to_string(),
                reason: "known are none, standard and min_max",
            }),
        }
    }

    fn networks(&self, tensors: BTreeMap<String, super::torch_legacy::Tensor>) -> Result<Imported, ImportError> {
        let mut file = Named { path: self.path, tensors };
        let layer = |network: &str, index: usize| format!("{network}_encoder._layers.{}", 2 * index);
        let stack = file.network(|i| layer("policy/", i), &["policy/_mu", "policy/_logstd"])?;
        let mut critic = |name: &str| file.network(|i| layer(name, i), &[&format!("{name}_fc")]);
        let (critic1, critic2) = (critic("q_funcs/0.")?, critic("q_funcs/1.")?);
        let targets = Some((critic("targ_q_funcs/0.")?, critic("targ_q_funcs/1.")?));
        let temperature = "log_temp/_parameter";
        let log_alpha = if file.has(temperature) { Some(file.number(temperature)?) } else { None };
        file.finish(&["log_alpha/"])?;
        let actor = ActorWeights { stack, log_std: LogStdBounds::default(), eyes: None };
        let weights = EnsembleWeights { actor, critic1, critic2, targets, log_alpha, encoder: None };
        Ok(Imported { weights, ..Imported::default() })
    }
}
