//! `manifest.toml` of a bundle: what the policy is, where it comes from, and the hash of every other file.
//!
//! The last two lines seal the file: SHA-256 over everything in front of them. A change by accident is noticed; who
//! changes it on purpose finds the new value in the message.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::nn::weights::{Eyes, LogStdBounds};
use crate::spaces::{FrameShape, Spaces};

/// Version of the bundle format.
pub const FORMAT: u32 = 1;
/// Longest manifest that is read.
pub const MAX_BYTES: usize = 1 << 18;
const SEAL: &str = "[seal]\n";

/// What the maker of a bundle says about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Name for people.
    pub name: String,
    /// Control steps per second the policy was trained for.
    pub control_hz: f64,
    /// How it was trained, for people, for example `CQL(H), 1M updates`.
    pub algorithm: String,
    /// gamma of the critics, in (0, 1].
    pub discount: f64,
    /// Clamp of the log standard deviation while training, if it was another one than for acting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_log_std: Option<LogStdBounds>,
    /// On what the actors stand, if they are a residual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual: Option<Residual>,
    /// Names of observation and action entries, in order.
    pub spaces: Spaces,
    /// Where it comes from: data set, seeds, licence and whatever else is known.
    #[serde(default)]
    pub provenance: BTreeMap<String, String>,
}

/// On what the actors of a [residual](super::residual) stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Residual {
    /// SHA-256 of the base's `policy.onnx`, hexadecimal.
    pub base_sha256: String,
    /// How much the residual adds to an entry of the base's action at most, in (0, 2].
    pub scale: f32,
}

/// What the weights say about themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// N.
    pub ensemble_size: usize,
    /// Hidden widths of the actors.
    pub hidden: Vec<usize>,
    /// Clamp of a member's log standard deviation for acting.
    pub log_std: LogStdBounds,
    /// Whether critics come along.
    pub critics: bool,
    /// What the actors see an image with, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderFacts>,
}

/// What the encoders of images say about themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderFacts {
    /// 1: one for all actors; N: one for each.
    pub encoders: usize,
    /// Size of the image.
    pub image: FrameShape,
    /// Output channels of each convolution.
    pub channels: Vec<usize>,
    /// Features that the dense layer makes.
    pub dense: usize,
    /// Whether the actors see the observation behind the features.
    pub proprioception: bool,
}

impl From<&Eyes> for EncoderFacts {
    fn from(eyes: &Eyes) -> Self {
        let convolutions = eyes.encoders.first().map_or(&[][..], |encoder| &encoder.convolutions);
        Self {
            encoders: eyes.encoders.len(),
            image: eyes.shape,
            channels: convolutions.iter().map(|c| c.outputs).collect(),
            dense: eyes.features(),
            proprioception: eyes.proprioception,
        }
    }
}

/// Size and hash of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// The manifest without its seal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What the maker says.
    pub description: Description,
    /// What the weights say.
    pub architecture: Architecture,
    /// Every other file of the bundle.
    pub files: BTreeMap<String, FileEntry>,
}

/// Why a text is not a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The seal is not there or not that of the text.
    #[error(
        "manifest.toml was changed after it was written; if the change is meant, its last lines are `[seal]` and `sha256 = \"{expected}\"`"
    )]
    Seal {
        /// SHA-256 of what is in front of the seal.
        expected: String,
    },
    /// Not TOML, unknown keys, wrong types.
    #[error("manifest.toml: {0}")]
    Parse(#[from] toml::de::Error),
    /// Cannot be written as TOML.
    #[error("manifest.toml cannot be written: {0}")]
    Write(#[from] toml::ser::Error),
    /// A newer format.
    #[error("manifest.toml has format {got}, this program reads {FORMAT}")]
    Format {
        /// What the manifest says.
        got: u32,
    },
    /// A value out of range.
    #[error("manifest.toml: {key} is {value}, allowed is {allowed}")]
    Value {
        /// Which key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The range in words.
        allowed: &'static str,
    },
}

/// Hexadecimal SHA-256.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

impl Manifest {
    /// The text with its seal.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn to_text(&self) -> Result<String, ManifestError> {
        self.check()?;
        sealed(self)
    }

    /// Reads a text, seal first.
    ///
    /// # Errors
    /// When the seal is broken, the text is no manifest, or a value is out of range.
    pub fn from_text(text: &str) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(unsealed(text)?)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let Description { name, control_hz, discount, residual, spaces, .. } = &self.description;
        check_common(self.format, name, *control_hz, spaces)?;
        if let Some(Residual { scale, .. }) = residual {
            range(*scale > 0.0 && *scale <= 2.0, "description.residual.scale", scale, "above 0, at most 2")?;
        }
        let allowed = *discount > 0.0 && *discount <= 1.0;
        range(allowed, "description.discount", discount, "above 0, at most 1")
    }
}

/// What holds for the manifest of every kind of bundle.
pub(super) fn check_common(format: u32, name: &str, control_hz: f64, spaces: &Spaces) -> Result<(), ManifestError> {
    if format != FORMAT {
        return Err(ManifestError::Format { got: format });
    }
    let allowed = control_hz > 0.0 && control_hz <= 1e5;
    range(allowed, "description.control_hz", &control_hz, "above 0, at most 100000")?;
    range(!name.trim().is_empty(), "description.name", &name, "a name")?;
    for (key, names) in
        [("description.spaces.observation", &spaces.observation), ("description.spaces.action", &spaces.action)]
    {
        let mut sorted = names.clone();
        sorted.sort_unstable();
        let distinct = sorted.windows(2).all(|w| w[0] != w[1]) && sorted.iter().all(|n| !n.trim().is_empty());
        range(distinct && !names.is_empty(), key, &names.join(", "), "distinct names, none empty")?;
    }
    Ok(())
}

/// TOML with its seal behind it.
pub(super) fn sealed(manifest: &impl Serialize) -> Result<String, ManifestError> {
    let body = format!("{}\n", toml::to_string(manifest)?);
    let seal = seal(&body);
    Ok(body + &seal)
}

/// The TOML in front of its seal.
pub(super) fn unsealed(text: &str) -> Result<&str, ManifestError> {
    let (body, found) = text.split_at(text.rfind(SEAL).unwrap_or(text.len()));
    if found == seal(body) { Ok(body) } else { Err(ManifestError::Seal { expected: sha256(body.as_bytes()) }) }
}

fn seal(body: &str) -> String {
    format!("{SEAL}sha256 = \"{}\"\n", sha256(body.as_bytes()))
}

fn range(ok: bool, key: &'static str, value: &dyn ToString, allowed: &'static str) -> Result<(), ManifestError> {
    if ok {
        Ok(())
    } else {
        Err(ManifestError::Value { key, value: value.to_string().chars().take(80).collect(), allowed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            description: Description {
                name: String::from("pendulum"),
                control_hz: 20.0,
                algorithm: String::from("CQL"),
                discount: 0.99,
                training_log_std: Some(LogStdBounds { min: -5.0, max: 2.0 }),
                residual: Some(Residual { base_sha256: sha256(b"base"), scale: 0.2 }),
                spaces: Spaces { observation: vec![String::from("theta_rad")], action: vec![String::from("torque")] },
                provenance: BTreeMap::from([(String::from("data"), String::from("a \"quoted\" set\nin two lines"))]),
            },
            architecture: Architecture {
                ensemble_size: 5,
                hidden: vec![64, 64],
                log_std: LogStdBounds::default(),
                critics: true,
                encoder: Some(EncoderFacts {
                    encoders: 1,
                    image: FrameShape { width: 48, height: 48, channels: 3 },
                    channels: vec![16, 16, 16],
                    dense: 64,
                    proprioception: true,
                }),
            },
            files: BTreeMap::from([(String::from("policy.onnx"), FileEntry { size: 3, sha256: sha256(b"abc") })]),
        }
    }

    #[test]
    fn round_trip_and_every_changed_byte_is_refused() {
        let text = manifest().to_text().unwrap();
        assert_eq!(Manifest::from_text(&text).unwrap(), manifest());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 2;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(Manifest::from_text(&changed).is_err(), "byte {at} may change");
            }
        }
        assert!(Manifest::from_text("").is_err());
    }

    #[test]
    fn a_meant_change_is_accepted_with_the_seal_of_the_message() {
        let text = manifest().to_text().unwrap().replace("control_hz = 20.0", "control_hz = 50.0");
        let Err(ManifestError::Seal { expected }) = Manifest::from_text(&text) else { panic!("accepted") };
        let body = &text[..text.rfind(SEAL).unwrap()];
        let sealed = format!("{body}[seal]\nsha256 = \"{expected}\"\n");
        assert_eq!(Manifest::from_text(&sealed).unwrap().description.control_hz, 50.0);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for change in [
            |m: &mut Manifest| m.format = 2,
            |m: &mut Manifest| m.description.control_hz = f64::NAN,
            |m: &mut Manifest| m.description.discount = 1.01,
            |m: &mut Manifest| m.description.residual.as_mut().unwrap().scale = f32::NAN,
            |m: &mut Manifest| m.description.spaces.action.clear(),
            |m: &mut Manifest| m.description.spaces.action.push(String::from("torque")),
        ] {
            let mut wrong = manifest();
            change(&mut wrong);
            assert!(wrong.to_text().is_err());
        }
    }
}
