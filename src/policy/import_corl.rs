//! CQL and Cal-QL of CORL: `torch.save(trainer.state_dict())`.
//!
//! Actor `base_network.{0,2,..}` with `[means, log_std]` as its last outputs, `log_std = multiplier out + offset`
//! clamped to -20..2; critics `network.{0,2,..}`; the entropy temperature as a pickled module. The multiplier and the
//! offset become part of the last layer. The file says neither how states were normalised nor `max_action`.

use std::path::Path;

use super::import::{ImportError, read as read_file, read_torch};
use super::import_kind::Imported;
use super::import_layers::{Named, map_outputs};
use crate::nn::weights::{ActorWeights, EnsembleWeights, LogStdBounds};

/// Reads one checkpoint; state scaling and action scale are not folded in yet.
pub(super) fn read(path: &Path) -> Result<Imported, ImportError> {
    let mut file = Named { path, tensors: read_torch(path, &read_file(path)?)? };
    let mut stack = file.network(|index| format!("actor/base_network.{}", 2 * index), &[])?;
    let multiplier = file.number("actor/log_std_multiplier.constant")?;
    let offset = file.number("actor/log_std_offset.constant")?;
    if let Some(last) = stack.layers.last_mut() {
        map_outputs(last, last.outputs / 2, f64::from(multiplier), f64::from(offset));
    }
    let mut critic = |name: &str| file.network(|index| format!("{name}/network.{}", 2 * index), &[]);
    let (critic1, critic2) = (critic("critic1")?, critic("critic2")?);
    let targets = Some((critic("critic1_target")?, critic("critic2_target")?));
    let temperature = "sac_log_alpha/_parameters/constant";
    let log_alpha = if file.has(temperature) { Some(file.number(temperature)?) } else { None };
    file.finish(&["cql_log_alpha", "sac_log_alpha"])?;
    let actor = ActorWeights { stack, log_std: LogStdBounds::default(), eyes: None };
    Ok(Imported {
        weights: EnsembleWeights { actor, critic1, critic2, targets, log_alpha, encoder: None },
        algorithm: String::from("CQL or Cal-QL, by CORL"),
        ..Imported::default()
    })
}
