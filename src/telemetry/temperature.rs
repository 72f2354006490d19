//! Temperatures of the machine, from the kernel's thermal zones.

use std::fs;
use std::path::{Path, PathBuf};

/// The sensors under a folder like `/sys/class/thermal`: `thermal_zone*/type` and `.../temp` in thousandths of a degree.
#[derive(Clone, Debug, Default)]
pub struct Zones(Vec<Zone>);

#[derive(Clone, Debug)]
struct Zone {
    name: String,
    temperature: PathBuf,
}

/// What no sensor of a working machine says, degrees Celsius.
const BELIEVABLE: std::ops::Range<f64> = -60.0..150.0;

impl Zones {
    /// All zones of `folder` but those whose name is in `ignore`. A folder that is not there has none.
    pub fn open(folder: &Path, ignore: &[String]) -> Self {
        let mut zones: Vec<Zone> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("thermal_zone")))
            .filter_map(|path| {
                let name = fs::read_to_string(path.join("type")).ok()?.trim().to_owned();
                Some(Zone { name, temperature: path.join("temp") })
            })
            .filter(|zone| !ignore.contains(&zone.name))
            .collect();
        zones.sort_by(|a, b| a.temperature.cmp(&b.temperature));
        Self(zones)
    }

    /// The hottest zone and its temperature in degrees Celsius. Zones that do not answer are left out: those of parts
    /// that are switched off never do.
    pub fn hottest(&self) -> Option<(&str, f64)> {
        let read = |zone: &Zone| {
            let milli: f64 = fs::read_to_string(&zone.temperature).ok()?.trim().parse().ok()?;
            Some(milli / 1000.0).filter(|celsius| BELIEVABLE.contains(celsius))
        };
        let readings = self.0.iter().filter_map(|zone| Some((zone.name.as_str(), read(zone)?)));
        readings.max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_zone_that_answers_and_counts() {
        let folder = tempfile::tempdir().unwrap();
        let zone = |number: usize, name: &str, temperature: Option<&str>| {
            let path = folder.path().join(format!("thermal_zone{number}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("type"), format!("{name}\n")).unwrap();
            if let Some(text) = temperature {
                fs::write(path.join("temp"), text).unwrap();
            }
        };
        assert_eq!(Zones::open(&folder.path().join("nothing"), &[]).hottest(), None);
        zone(0, "cpu-thermal", Some("51250\n"));
        zone(1, "gpu-thermal", Some("62000\n"));
        zone(2, "cv0-thermal", None);
        zone(3, "PMIC-Die", Some("100000\n"));
        zone(4, "broken", Some("-274000\n"));
        zone(5, "words", Some("warm\n"));
        fs::create_dir(folder.path().join("cooling_device0")).unwrap();
        let zones = Zones::open(folder.path(), &["PMIC-Die".into()]);
        assert_eq!(zones.hottest(), Some(("gpu-thermal", 62.0)));
        zone(0, "cpu-thermal", Some("70500\n"));
        assert_eq!(zones.hottest(), Some(("cpu-thermal", 70.5)), "it is read again");
        assert_eq!(Zones::open(folder.path(), &[]).hottest(), Some(("PMIC-Die", 100.0)));
    }
}
